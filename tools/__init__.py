"""How the bundled base model and the bundled task data are made."""
