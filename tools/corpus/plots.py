"""The plots of the stories: stages with several phrasings, and questions about the outcome."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """Stages are told in order; asks are (question, short answer, long answer)."""

    stages: tuple[tuple[str, ...], ...]
    asks: tuple[tuple[str, str, str], ...] = ()


HABITS = (
    "Every day {he} ate {food} and walked to the {other}.",
    "{He} liked {food}, but {he} did not like to be alone.",
    "Most of all {he} loved {his} {look} {thing}.",
    "People often saw {him} near the {other} with {his} friend {Friend}.",
    "{He} had {n} friends, and the best of them was {Friend} the {fkind}.",
    "When it rained, {he} stayed at home and sang.",
)

LOST = Plot(
    (
        (
            "{time}, {Hero} could not find {his} {look} {thing}.",
            "{time}, {Hero} lost {his} {look} {thing} in the {place}.",
            "{Hero} had {alook} {thing}. But {time_l} it was gone.",
        ),
        (
            "{He} looked under the bed and behind the door, but it was not there.",
            "{He} looked everywhere, and {he} began to cry.",
            '"Where is my {thing}?" asked {Hero}. Nobody knew.',
        ),
        (
            'Then {he} met {Friend} the {fkind}. "Why are you sad?" asked {Friend}.',
            "{Friend}, who was {ftrait}, saw that something was wrong.",
            '{His} friend {Friend} said, "Do not worry. I will help you look."',
        ),
        (
            "Together they went to the {other}. There, under a leaf, was the {thing}!",
            "They searched the {other} until {Friend} found the {thing} behind a stone.",
            '"Look!" cried {Friend}. The {thing} was lying in the {other}, wet but not broken.',
        ),
        (
            "{Hero} took the {thing} and thanked {fhim} {n} times.",
            "{Hero} was so glad that {he} hugged {Friend}.",
            "{Hero} held the {look} {thing} close and laughed.",
        ),
    ),
    (
        ("What did {Hero} lose?", "a {look} {thing}", "{Hero} lost {his} {look} {thing}."),
        ("Where was the {thing}?", "in the {other}", "The {thing} was in the {other}."),
        ("Who found the {thing}?", "{Friend}", "{Friend} helped to find the {thing}."),
    ),
)

FEAR = Plot(
    (
        (
            "But {Hero} had a secret: {he} was afraid of the {place}.",
            "{Hero} never went to the {place}, because {he} was afraid of it.",
            "Everybody liked to play in the {place}, only {Hero} did not dare.",
        ),
        (
            "{time}, {Friend} ran into the {place} and did not come back.",
            '{time}, {he} heard {Friend} calling from the {place}. "Help! I am stuck!"',
            "{time}, {his} friend {Friend} fell into a hole in the {place}.",
        ),
        (
            "{Hero} stood still. {His} heart was beating fast.",
            '"I am scared," {he} whispered, "but {Friend} needs me."',
            "{weather}. {Hero} took a deep breath.",
        ),
        (
            "{He} took {alook} {thing} and walked into the {place}, one step at a time.",
            "Slowly, {he} went in, and {he} held {his} {thing} very tightly.",
            "Then {he} closed {his} eyes, counted to {n}, and ran in.",
        ),
        (
            "There was {Friend}! {Hero} pulled {fhim} out.",
            "Soon {he} found {Friend} and led {fhim} home.",
            "With a rope, {Hero} helped {Friend} to climb out.",
        ),
        (
            '"You are not afraid any more," said {Friend}.',
            "The {place} did not look so dark now.",
            '"You are brave," said {Friend}, and {Hero} was proud.',
        ),
    ),
    (
        ("What was {Hero} afraid of?", "the {place}", "{Hero} was afraid of the {place}."),
        ("Who needed help?", "{Friend}", "{Friend} needed help."),
    ),
)

MEND = Plot(
    (
        (
            "{Hero} had {alook} {thing}. {time}, it fell down and broke.",
            "{time}, {Hero} broke the {look} {thing} that belonged to {Friend}.",
            "{time}, the {thing} of {Friend} was broken, and it was {Hero} who had done it.",
        ),
        (
            "{He} felt very bad about it.",
            '"Oh no," said {Hero}. "What shall I do?"',
            "At first {he} wanted to hide it.",
        ),
        (
            "{He} tried to mend it with glue, but the glue did not hold.",
            "{He} tried to tie it with a rope, but the rope was too short.",
            "{He} worked on it for {n} hours, and it still did not work.",
        ),
        (
            "So {he} went to {Friend} and told {fhim} the truth.",
            "In the end {he} asked {Friend} for help.",
            '"I am sorry," {he} said to {Friend}. "It was my fault."',
        ),
        (
            '{Friend} was not angry. "We can mend it together," {fhe} said.',
            "{Friend} fetched a hammer and some nails from the {other}.",
            "{Friend} thought for a while, and then {fhe} had an idea.",
        ),
        (
            "By the evening, the {thing} was as good as new.",
            "They worked side by side until the {thing} was whole again.",
            "Now the {thing} looked even better than before.",
        ),
    ),
    (
        ("What was broken?", "the {thing}", "The {thing} was broken."),
        ("Who helped to mend it?", "{Friend}", "{Friend} helped to mend it."),
    ),
)

RACE = Plot(
    (
        (
            "{time}, there was a race from the {place} to the {other}.",
            "Every year {town} held a race around the {place}.",
            '"Let us race to the {other}," said {Friend} {time_l}.',
        ),
        (
            "The prize was {alook} {thing}, and {Hero} wanted to win it.",
            "{Hero} wanted to win, for the winner would get {alook} {thing}.",
            "{Friend} was fast, but {Hero} hoped to win the {look} {thing}.",
        ),
        (
            "{Friend} ran ahead at once. {Hero} was {n} steps behind.",
            "At first {Hero} was in front, and {Friend} was far behind.",
            "They started at the same time. {weather}.",
        ),
        (
            "Then {Friend} fell over a root and hurt {fhis} leg.",
            "Halfway there, {Friend} fell into a puddle and could not get up.",
            "But near the {other} {Friend} stopped, for {fhe} had a stone in {fhis} foot.",
        ),
        (
            "{Hero} could have won easily, but {he} stopped to help.",
            "{Hero} turned around and went back to help {fhim}.",
            '"A friend is better than a {thing}," thought {Hero}, and {he} stayed with {fhim}.',
        ),
        (
            "They crossed the line together, and both of them got a prize.",
            "Nobody won the race that day, but everybody clapped for {Hero}.",
            "The judge gave {Hero} the {thing} all the same, because {he} was so kind.",
        ),
    ),
    (
        ("What was the prize?", "a {look} {thing}", "The prize was {alook} {thing}."),
        ("Who was hurt?", "{Friend}", "{Friend} was hurt."),
        ("Who stopped to help?", "{Hero}", "{Hero} stopped to help."),
    ),
)

HUNGRY = Plot(
    (
        (
            "{time}, {Hero} was very hungry, and there was no food in the house.",
            "{weather}. {Hero} had not eaten for {n} days.",
            "{time}, {Hero} wanted to eat {food}, but the plate was empty.",
        ),
        (
            "{He} went to the {place}, but {he} found nothing there.",
            "{He} asked the old woman at the {place}, but she had nothing to give.",
            "{He} looked for {food} in the {place} and found only stones.",
        ),
        (
            "At the {other} {he} met {Friend}, who had a basket of {food}.",
            "Then {he} smelled {food}. It came from the house of {Friend}.",
            "{Friend} was sitting in the {other} and eating {food}.",
        ),
        (
            '"May I have some?" asked {Hero}.',
            "{Hero} was too {trait} to ask, so {he} only looked.",
            '"I will give you my {thing} for some {food}," said {Hero}.',
        ),
        (
            "{Friend} gave {him} half of it.",
            '"Keep your {thing}," said {Friend}. "Just eat."',
            "{Friend} smiled and made room for {him} at the table.",
        ),
        (
            "Never had {food} tasted so good.",
            "They ate until nothing was left.",
            "The next day {Hero} brought {fhim} {agift} to say thanks.",
        ),
    ),
    (
        ("What did {Hero} want to eat?", "{food}", "{Hero} wanted to eat some {food}."),
        ("Who had food?", "{Friend}", "{Friend} had some {food}."),
    ),
)

GIFT = Plot(
    (
        (
            "On {day} it was the birthday of {Friend}, and {Hero} wanted to give {fhim} a present.",
            "{Friend} the {fkind} was ill, and {Hero} wanted to bring {fhim} a gift.",
            "{Hero} wanted to make a present for {Friend}, because {fhe} was so {ftrait}.",
        ),
        (
            "But {he} had no money at all.",
            "But {he} had only {n} coins.",
            '"What does {fhe} like?" {Hero} wondered.',
        ),
        (
            "{He} went to the {place} and looked at {alook} {thing}, but it cost too much.",
            "In the {place} {he} saw {alook} {thing}, but somebody else bought it.",
            "{He} tried to draw a picture, but the paper got wet.",
        ),
        (
            "Then {he} found a piece of wood in the {other}, and {he} made {agift} out of it.",
            "So {he} worked all day in the {other} and made {agift}.",
            "At last {he} sat down and made {agift} with {his} own hands.",
        ),
        (
            "When {Friend} saw the {gift}, {fhe} jumped for joy.",
            '"{cap_agift}!" cried {Friend}. "It is just what I wanted."',
            "{Friend} put the {gift} next to {fhis} bed and looked at it all day.",
        ),
    ),
    (
        ("What did {Hero} make?", "{agift}", "{Hero} made {agift}."),
        ("Who got the {gift}?", "{Friend}", "{Friend} got the {gift}."),
    ),
)

NOISE = Plot(
    (
        (
            "{time}, {Hero} heard a strange noise from the {place}.",
            "At night there was a noise in the {place}. It kept {Hero} awake.",
            "{time}, something in the {place} went knock, knock, knock.",
        ),
        (
            '"Is it a monster?" {he} asked.',
            "{He} hid under the blanket and listened.",
            "{He} asked {Friend}, but {Friend} had no idea either.",
        ),
        (
            "With a lamp in {his} hand, {he} went to see.",
            "{Friend} came along and carried {alook} {thing}.",
            "They walked through the dark, very close to each other.",
        ),
        (
            "It was only {athing} that was moving in the wind.",
            "Behind the door sat a little bird, which could not get out.",
            "There was {alook} {thing}, and the wind was knocking it against the wall.",
        ),
        (
            "{Hero} laughed so loudly that {he} woke everybody up.",
            '"So that was it!" said {Hero}, and all the fear was gone.',
            "They put everything right, and then it was quiet.",
        ),
    ),
    (
        ("Where did the noise come from?", "the {place}", "The noise came from the {place}."),
        ("Who heard the noise?", "{Hero}", "{Hero} heard the noise."),
    ),
)

GARDEN = Plot(
    (
        (
            "In spring {Hero} planted {n} seeds behind the {place}.",
            "{time}, {Friend} gave {Hero} a bag with {n} seeds in it.",
            "{Hero} wanted to have a garden with {colour} flowers.",
        ),
        (
            "Every morning {he} gave them water.",
            "{He} waited and waited, but nothing grew.",
            '"Why does it take so long?" {he} asked {Friend}.',
        ),
        (
            "Then there was no rain for weeks, and the earth became hard.",
            "Then a goat came and ate the first green leaves.",
            "But a storm washed most of the earth away.",
        ),
        (
            "{Friend} helped {him} to carry water from the {other}.",
            "{Friend} built a fence, and {Hero} planted new seeds.",
            '"Do not give up," said {Friend}, and they began again.',
        ),
        (
            "In the end there were {colour} flowers everywhere.",
            "One day the first {colour} flower opened.",
            "By summer the garden was the most beautiful one in {town}.",
        ),
    ),
    (
        ("What colour were the flowers?", "{colour}", "The flowers were {colour}."),
        ("How many seeds were there?", "{n}", "There were {n} seeds."),
    ),
)

QUARREL = Plot(
    (
        (
            "{time}, {Hero} and {Friend} found {alook} {thing} in the {place}.",
            "There was only one {thing}, but both {Hero} and {Friend} wanted it.",
            "{Hero} and {Friend} always played together, until they found {alook} {thing}.",
        ),
        (
            '"It is mine!" said {Hero}. "No, I saw it first!" said {Friend}.',
            "They pulled at it from both sides, and they shouted.",
            "{Hero} took the {thing} and ran off with it.",
        ),
        (
            "For {n} days they did not speak to each other.",
            "{Friend} went home alone, and {fhe} was very sad.",
            "But to play alone was no fun at all.",
        ),
        (
            'Then {Hero} thought, "What good is a {thing} without a friend?"',
            'In the {other} {Hero} met an old man, who said, "You could share it."',
            "At last {Hero} went to the house of {Friend} and knocked.",
        ),
        (
            '"You can have it on {day}," said {Hero}, "and I will have it the next day."',
            '"I am sorry," said {Hero}. "Let us share it."',
            "{Hero} gave the {thing} to {Friend}, but {Friend} wanted to share it.",
        ),
    ),
    (
        ("What did they quarrel about?", "a {thing}", "They quarrelled about {athing}."),
        ("Where did they meet?", "in the {place}", "It all happened near the {place}."),
    ),
)

LATE = Plot(
    (
        (
            "On {day} there was a party in the {other}, and {Hero} was late.",
            "{Hero} had to be at the {other} by {n} o'clock.",
            "{time}, {Hero} had to bring {athing} to {Friend} in the {other}.",
        ),
        (
            "The bus did not come.",
            "{weather}, and the road was closed.",
            "On the way {he} saw {alook} {gift} and stopped to look at it.",
        ),
        (
            "So {he} ran through the {place} as fast as {he} could.",
            '"I will take the short way through the {place}," {he} said, but soon {he} was lost.',
            "{He} asked a farmer for the way, but the farmer sent {him} to the {place}.",
        ),
        (
            "There {Friend} saw {him} from far away and waved.",
            "Luckily {Friend} came by with a cart and took {him} along.",
            "Then {he} heard the voice of {Friend} and followed it.",
        ),
        (
            "When they came to the {other}, everybody was still waiting.",
            "They got there just in time.",
            "It was late, but {Friend} had kept a piece of cake.",
        ),
    ),
    (
        ("Where did {Hero} have to go?", "to the {other}", "{Hero} had to go to the {other}."),
        ("Who helped {Hero}?", "{Friend}", "{Friend} helped {Hero}."),
    ),
)

GUEST = Plot(
    (
        (
            "{time}, somebody knocked at the door. It was {Friend}, {afkind} from {town}.",
            "{weather} when {afkind} named {Friend} came to the {place}.",
            'One night a stranger came. "My name is {Friend}," said the {fkind}.',
        ),
        (
            "{fHe} was cold and tired.",
            '"I have lost my way," said {Friend}.',
            "{fHe} carried {alook} {thing} and did not say a word.",
        ),
        (
            "At first {Hero} did not want to open the door.",
            "{Hero} had little food, but {he} shared it.",
            "{Hero} was unsure, but {he} was polite.",
        ),
        (
            "{He} gave {fhim} some {food} and a warm blanket.",
            '"Come in and sit by the fire," {he} said.',
            "Soon they were sitting by the fire and eating {food}.",
        ),
        (
            "In the morning {Friend} was gone, but {alook} {thing} lay on the table.",
            "Before {fhe} left, {Friend} gave {him} {agift}.",
            "{Friend} stayed for {n} days and told wonderful stories.",
        ),
    ),
    (
        ("Who came to the door?", "{Friend}", "{Friend} came to the door."),
        ("What did they eat?", "{food}", "They ate {food}."),
    ),
)

BUILD = Plot(
    (
        (
            "{Hero} wanted to build a bridge to the {other}.",
            "{time}, {Hero} had a plan: {he} would build a house in the {place}.",
            '"I will build a boat," said {Hero}, "and sail around the {place}."',
        ),
        (
            "{He} took {n} boards and some nails.",
            "{He} drew a plan on a big piece of paper.",
            "Everybody said that it could not be done.",
        ),
        (
            "The first time, it fell down with a crash.",
            "{weather}, and the water carried everything away.",
            "It was crooked, and the door was too small.",
        ),
        (
            '{Friend} watched {him}. "You need a strong rope," {fhe} said.',
            "Then {Friend} the {fkind} came and held the boards.",
            '"Two can do more than one," said {Friend}, and {fhe} took a hammer.',
        ),
        (
            "After {n} days it was finished, and it did not fall.",
            "At last it stood there, strong and {colour}, for {Friend} had painted it.",
            "In the evening they sat on it and ate {food}.",
        ),
    ),
    (("Who helped to build it?", "{Friend}", "{Friend} helped to build it."),),
)

SECRET = Plot(
    (
        (
            "{time}, {Hero} found an old map in {alook} {thing}.",
            "Under the floor {Hero} found a letter. It spoke of a treasure in the {place}.",
            "An old sailor gave {Hero} a map of the {place}.",
        ),
        (
            '"{n_cap} steps to the north," it said, "and then dig."',
            "{He} showed it to {Friend}, who could read old letters.",
            '"Do not tell anybody," {he} said to {Friend}.',
        ),
        (
            "They dug for {n} hours and found nothing but stones.",
            "It was hot, and {Friend} wanted to go home.",
            "On the way they had to pass the dark {other}.",
        ),
        (
            "Then the spade hit something hard. It was a box!",
            '"Wait," said {Friend}. "We are holding the map upside down!"',
            "Behind the biggest stone there was {alook} box.",
        ),
        (
            'In it they found no gold, only {agift} and a note: "Be good to each other."',
            "It was full of coins, and they gave half of them to the poor.",
            "Inside lay {agift}, and it was {colour} and very old.",
        ),
    ),
    (("Who went along with {Hero}?", "{Friend}", "{Friend} went along with {Hero}."),),
)

PLOTS = (LOST, FEAR, MEND, RACE, HUNGRY, GIFT, NOISE, GARDEN, QUARREL, LATE, GUEST, BUILD, SECRET)
