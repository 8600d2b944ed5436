ARGUMENTS = ["train", "plan.yaml", "--run-dir", "out"]
