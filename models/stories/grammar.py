"""Children's stories from a small grammar: the training text of the model that ships here.

A story is one of a dozen plots. A plot is a sequence of beats, each beat a template in which
``[a|b|c]`` is a choice (it may nest, and a branch may be empty) and ``{slot}`` is filled from the
state of the story: who the hero is, which pronouns follow, what colour the lost ball has, where it
turns up. A beat that begins with ``?`` is told in half of the stories. The state is drawn once for
each story, so everything that is said twice agrees.

The vocabulary is deliberately small and the number of combinations large: a model of half a million
weights can learn to tell such stories, and it cannot learn them by heart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokenfabric.core.errors import UserError

MAX_WORDS = 142  # some 240 tokens: a story fits the 256 of the context

GIRLS = ("Lily", "Mia", "Anna", "Lucy", "Emma", "Zoe", "Ella", "Nina", "Rosie", "Sara", "Amy")
BOYS = ("Tom", "Ben", "Max", "Sam", "Tim", "Leo", "Jack", "Finn", "Noah", "Oscar", "Peter")
# Animals have names of their own, so that a name alone already tells a child from a rabbit.
SHE_ANIMALS = ("Daisy", "Luna", "Bella", "Coco", "Poppy", "Dot", "Hazel")
HE_ANIMALS = ("Pip", "Milo", "Rex", "Bobo", "Rufus", "Toby", "Fuzzy")

# kind: where it lives
ANIMALS = {
    "rabbit": "in a warm hole under an old tree",
    "fox": "in a cozy den in the forest",
    "bear": "in a cozy cave on the hill",
    "mouse": "in a tiny house behind a farm",
    "duck": "in a nest by the pond",
    "frog": "under a big leaf by the pond",
    "cat": "in a little house by the river",
    "puppy": "on a farm near the forest",
    "squirrel": "in a tall tree in the forest",
    "turtle": "under a rock by the river",
}
CHILD_HOMES = (
    "in a little house by the river",
    "in a small house near the forest",
    "on a farm near the hill",
    "in a small town by the sea",
    "in a cozy house with a big garden",
    "in a small village",
)
PARENTS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}

TRAITS = ("little", "kind", "happy", "brave", "curious", "shy", "clever", "cheerful", "quiet")
COLORS = ("red", "blue", "green", "yellow", "pink", "purple", "orange", "white")
PET_COLORS = ("white", "brown", "gray", "black", "yellow")
WEATHER = ("sunny", "warm", "bright", "windy", "cloudy", "cold")

# toy: what friends do with it, after "they" and after "let us"
TOYS = {
    "ball": ("threw the ball back and forth", "throw the ball"),
    "kite": ("made the kite fly high in the sky", "fly the kite"),
    "hat": ("took turns wearing the hat", "take turns with the hat"),
    "drum": ("played loud songs on the drum", "play the drum"),
    "boat": ("played with the boat and laughed", "play with the boat"),
    "book": ("read the book under a tree", "read the book"),
    "teddy bear": ("had a tea party with the teddy bear", "play with the teddy bear"),
    "car": ("raced the car down a little path", "race the car"),
    "doll": ("had a tea party with the doll", "play with the doll"),
    "bell": ("made music with the bell", "ring the bell"),
}
# place: the spots there in which a thing can hide
PLACES = {
    "the park": ("under the bench", "behind the slide", "under a big tree", "near the swings"),
    "the garden": ("behind the flowers", "under a bush", "near the gate", "beside the fence"),
    "the forest": ("under the leaves", "behind a log", "beside a big rock", "under a bush"),
    "the river": ("in the tall grass", "beside a big rock", "under the bridge", "behind a log"),
    "the beach": ("behind a sand hill", "beside a big rock", "under a towel", "near the shells"),
    "the hill": ("in the tall grass", "behind a big rock", "under a big tree", "under a bush"),
    "the pond": ("in the tall grass", "behind a log", "under the bridge", "beside a big rock"),
}
# a small animal, how it is stuck, what the rescuers use and do
RESCUES = (
    ("kitten", "stuck high up in a tree", "a long ladder", "climbed up and carried it down"),
    ("bird", "caught in an old net", "a pair of scissors", "cut the net open"),
    ("duckling", "stuck in a deep hole", "a long rope and a basket", "pulled it up in the basket"),
    ("lamb", "stuck in the mud", "a strong rope", "pulled it out of the mud"),
    ("bunny", "caught under a heavy branch", "a strong stick", "lifted the branch with the stick"),
    ("butterfly", "caught in a spider web", "a small stick", "broke the web with the stick"),
)
# what is feared, the step that is taken, what it turns out to be
FEARS = (
    ("the dark", "turned off the lamp", "The dark was soft and quiet, and the stars were bright"),
    ("deep water", "jumped into the pond", "The water was cool, and it was fun to splash"),
    ("the big slide", "went down the slide", "It was fast and so much fun"),
    ("loud thunder", "looked out of the window", "The thunder was just the clouds playing drums"),
    ("the big dog next door", "held out a hand to the dog", "The dog was soft and wagged its tail"),
    ("the old bridge", "walked over the bridge", "The bridge was strong, and the view was nice"),
    ("the tall tree", "climbed up the tree", "From the top, the whole world looked small"),
    ("singing in front of others", "sang a song for everyone", "Everyone clapped and smiled"),
)
# what is built, from what, what happens to it, and the wiser way
BUILDS = (
    ("sand castle", "wet sand", "a big wave washed it away", "far from the water"),
    ("snowman", "soft snow", "the warm sun melted it", "in the cool shade"),
    ("tower", "wooden blocks", "a strong wind knocked it down", "behind a wall"),
    ("tent", "an old sheet and sticks", "a strong wind blew it away", "between two trees"),
    ("raft", "sticks and leaves", "a big wave broke it", "with strong wood"),
    ("tree house", "old boards", "a big storm broke it", "with more nails"),
    ("bridge", "small stones", "a big rain washed it away", "with a big log"),
)
# what breaks, and the game that broke it
BREAKS = (
    ("vase", "throwing a ball in the house"),
    ("cup", "running around the table"),
    ("plate", "dancing in the kitchen"),
    ("lamp", "jumping on the bed"),
    ("window", "kicking a ball near the house"),
    ("clock", "flying a toy plane in the house"),
)
# what is baked, what is missing, where it comes from
BAKES = (
    ("cake", "eggs", "the hens on the farm", "hens"),
    ("apple pie", "apples", "the tree on the hill", "tree"),
    ("bread", "flour", "the old mill", "mill"),
    ("honey cake", "honey", "the bees in the meadow", "bees"),
    ("berry pie", "berries", "the bushes in the forest", "bushes"),
    ("carrot cake", "carrots", "the garden behind the house", "garden"),
)
# a present, what it is made of, and where that is gathered
PRESENTS = (
    ("necklace", "shells", "on the beach"),
    ("crown", "flowers", "in the meadow"),
    ("picture", "leaves", "in the forest"),
    ("card", "feathers", "by the pond"),
    ("basket", "berries", "in the forest"),
    ("bracelet", "little stones", "by the river"),
)
# what a seed becomes
PLANTS = ("flower", "rose", "sunflower", "apple tree", "bean plant", "pumpkin")
# what leads the hero astray
LURES = ("butterfly", "bird", "dragonfly", "balloon")
GUIDES = ("owl", "deer", "turtle", "mouse", "hedgehog")
# what a magic thing is, and the wish that helps somebody else
MAGIC = ("stone", "shell", "lamp", "key", "ring", "feather")
WISHES = (
    ("the dry garden", "rain", "Soft rain fell, and all the flowers opened"),
    ("the hungry birds", "food", "Seeds fell from the sky, and the birds ate and sang"),
    ("the dark village", "light", "Little lights came on in every window"),
    ("the lonely old man", "a friend", "A small puppy ran up to the old man and licked his hand"),
    ("the cold sheep", "warm sun", "The clouds went away, and the sun came out"),
)
RACES = ("to the big tree", "around the pond", "to the top of the hill", "to the old bridge")


@dataclass(frozen=True)
class Character:
    """Somebody with a name: ``kind`` is girl, boy or an animal, ``pronoun`` is she or he."""

    name: str
    kind: str
    pronoun: str

    @property
    def is_child(self) -> bool:
        """Whether this is a girl or a boy rather than an animal."""
        return self.kind in ("girl", "boy")


@dataclass(frozen=True)
class Story:
    """One story: its text, the plot it follows and everybody in it who has a gender.

    ``others`` holds the pronouns of characters without a name (a parent, an old man).
    """

    text: str
    plot: str
    hero: Character
    friend: Character
    others: tuple[str, ...]


_ONCE = (
    "Once upon a time, there was a {trait} {kind} named {N}. {life}",
    "Once upon a time, there was a {trait} {kind} named {N}. {life}",
    "Once upon a time, there lived a {trait} {kind} named {N}. {life}",
    "Once upon a time, a {trait} {kind} named {N} lived {home}.",
    "Once upon a time, a {kind} named {N} lived {home} with {his} {par}.",
)
OPENINGS = (
    *(2 * _ONCE),
    "There was once a {trait} {kind} named {N}. {life}",
    "{N} was a {trait} {kind} who lived {home}.",
    "{N} was a {trait} {kind}. {life}",
    "A {trait} {kind} named {N} lived {home}.",
    "There was a {trait} {kind} named {N}. {life}",
    "A long time ago, a {trait} {kind} named {N} lived {home}.",
    "One {weather} [day|morning], {N} the {kind} woke up [early|happy]. {life}",
    "One {weather} [day|morning], a {trait} {kind} named {N} woke up. {life}",
    "One {weather} [day|morning], {N} [was happy|looked out of the door|sang a song]. {life}",
    "One day, {N} [was happy|woke up early|sang a song]. {life}",
    "[In a small village|Near a small hill|Far away], there lived a {trait} {kind} named {N}.",
    "{N} the {kind} [was happy|was {trait}]. {life}",
    "",
)
LIFE = (
    "{He} lived {home}.",
    "{He} lived {home} with {his} {par}.",
    "{He} lived {home}, and {he} loved to [play outside|sing|laugh|run and jump].",
    "{He} liked to [play outside|sing songs|look at the clouds|help {his} {par}].",
    "Everyone liked {N} because {he} was so [nice|kind|funny].",
)
# The end of every story, after the plot and its moral.
CLOSINGS = ("", "", "", "", "", "The end.", "And {N} slept well that night.")

# One paragraph is one beat.
_PLOT_TEXTS = {
    "lost": """
{N} had a {color} {toy}. [It was a gift from {his} {par}.|{He} loved it very much.|{He} took it
with {him} every day.]

One {weather} [day|morning], {N} took the {toy} to {place}. [{He} ran and jumped and
played.|{He} played there for a long time.|{He} had a lot of fun.]

[But when it was time to go home, the {color} {toy} was gone!|But then {he} looked around, and
the {color} {toy} was gone!]

["Oh no! Where is my {toy}?" cried {N}.|"Oh no! I lost my {toy}!" said {N}.|{N} was very sad and
began to cry.]

?[{He} looked {spot1}, but it was not there.|{He} looked {spot1} and {spot2}, but it was not
there.|{He} looked {spot1}. No {toy}. {He} looked {spot2}. No {toy}.]

[Just then|Soon], {his} friend {FF} came by. "[Why are you sad|What is wrong], {N}?" asked {F}.
"I lost my {color} {toy}," said {N}. "[Do not worry|Do not cry]. I will help you [look for
it|find it]," said {F}.

[Together, they looked and looked.|They looked everywhere.|So they looked together.] At last,
{F} looked {spot3}. ["Look! Here it is!" {fhe} said.|"I found it!" {fhe} shouted.|There was the
{color} {toy}!]

{N} was so happy. [{He} hugged {F}.|"Thank you, {F}! You are a good friend," {he} said.|"Thank
you for helping me," {he} said.]

?[Then they {toy_did}.|The two friends {toy_did} until the sun went down.]

[{N} learned that a good friend is always there to help.|From that day on, {N} took good care of
{his} {toy}.|{N} and {F} were best friends from that day on.|]
""",
    "share": """
{N} had a new {color} {toy}. [It was the best {toy} in the world.|{His} {par} gave it to
{him}.|{He} was very proud of it.]

One {weather} day, {he} took it to {place}. {His} friend {FF} [was there too|came to play
there].

"What a nice {toy}! Can I play with it?" asked {F}. "No! It is mine," said {N}. {F} [was sad and
walked away|felt sad and sat down {spot1}|looked down and did not say a word].

?{N} played alone. [But it was not fun to play alone.|But soon {he} felt lonely.|But after a
while it was not fun at all.]

[{He} looked at {F} and felt bad.|{He} thought about {F}.|Then {he} saw that {F} was crying.]

[{N} went to {F} and said, "I am sorry. Let us {toy_do} together."|"I am sorry, {F}. You can
play with my {toy} too," said {N}.|{N} gave the {toy} to {F}. "You can have a turn," {he} said.]

{F} smiled [a big smile|and jumped up]. [Then they {toy_did}.|They {toy_did} all day.] They
laughed and laughed.

?[{F} had a {color2} {toy2} at home. The next day, {fhe} let {N} play with it too.|"Thank you
for sharing," said {F}.|When {N} came home, {he} told {his} {par} about the day. "I am proud of
you," said {his} {par}.|]

[{N} learned that sharing makes everything more fun.|{N} learned that it is good to share.|From
that day on, {N} always shared {his} toys.]
""",
    "rescue": """
One {weather} [day|morning], {N} [was walking|went for a walk] near {place} with {his} friend
{FF}.

[Suddenly|Then], they heard a [small|tiny|sad] sound. [{N} looked around.|They stopped and
looked around.|"What is that?" asked {F}.]

They saw a little {pet_color} {pet}. It was {stuck}. [It looked so scared.|The poor {pet} could
not get away.|The {pet} was cold and afraid.]

["We have to help it!" said {N}.|"Poor little {pet}! We must help," said {N}.] ["But how?" asked
{F}.|"I have an idea," said {F}.|]

[{N} ran home to {his} {par}. {pHe} had {tool}.|{N} ran home and asked {his} {par} for help.
{pHe} gave {him} {tool}.|They asked {P_his} {par} for help, and {phe} came with {tool}.]

[{N} was very careful. {He} {freed}.|{N} went back to the {pet} and {freed}.|Then {N} took a
deep breath and {freed}.]

[The {pet} was safe!|At last, the {pet_color} {pet} was free!] ["Hooray!" shouted {F}.|{F}
clapped and cheered.|"You did it, {N}!" said {F}.]

?[They gave it some food and water.|{N} held it and kept it warm.|The {pet} looked at {N} as if
to say thank you.]

?[After that, the little {pet} came to see {N} every day.|Then the {pet} went back to its
family.|{N} waved as the {pet} went home.]

[{N} learned that even someone small can do big things.|{N} and {F} were happy that they
helped.|It felt good to be kind.|{His} {par} was very proud of {him}.]
""",
    "fear": """
{N} had one problem. {He} was afraid of {fear}. [{He} did not tell anyone.|It made {him} feel
very small.|{His} {par} knew about it.]

One {weather} day, {his} friend {FF} came to visit. [They played for a long time.|They had fun
together.|They ate some cookies.]

[Then {F} saw that {N} was shaking. "What is wrong?" {fhe} asked.|"Why do you look so scared?"
asked {F}.|"Is something wrong, {N}?" asked {F}.]

["I am afraid of {fear}," said {N}.|{N} looked down. "I am scared of {fear}," {he} said.]

["That is okay. I was afraid once too," said {F}.|"Everyone is afraid of something," said
{F}.|{F} did not laugh. {fHe} took {N} by the hand.] ["I will stay with you.|"We can do it
together.|"Just try it one time.] You are brave," {fhe} said.

[{N} took a deep breath.|{N} closed {his} eyes and counted to three.|{N} thought about it for a
long time.] Then {he} {step}. [{His} heart beat fast.|{F} was right there.|]

[And guess what?|But nothing bad happened.] {truth}! [{N} began to laugh.|{N} smiled a big
smile.|{N} could not believe it.]

?["I did it! I am not afraid anymore!" {he} said.|"Can we do it again?" {he} asked.|"That was
not so bad," {he} said.] ["I knew you could do it," said {F}.|{F} gave {him} a big hug.|{F}
clapped and cheered.]

[From that day on, {N} was not afraid of {fear}.|{N} learned that it is okay to be scared, and
that it is good to try.|{N} learned that being brave is easier with a friend.]
""",
    "build": """
{N} had a friend named {F}. [One {weather} day|One {weather} morning], they wanted to build a
{thing}.

?["It will be the best {thing} in the world!" said {F}.|"Let us make it very big," said {N}.|"I
have a good idea," said {N}.]

They used {stuff}. [They worked hard all morning.|They worked and worked.|{N} sang a song while
they worked.] [At last, it was done.|Soon the {thing} was done.]

But then {ruin}. [Oh no!|The {thing} was gone!|All the work was gone!]

[{F} was sad. "I want to go home," {fhe} said.|{F} began to cry. "Now we have nothing," {fhe}
said.|{F} was angry and kicked a stone.]

["Do not give up," said {N}. "We can try again."|But {N} did not give up. "Let us try one more
time," {he} said.|{N} gave {F} a hug. "We can make a new one," {he} said.]

?[{N} thought hard.|They sat down and thought.|They asked {P_his} {par} for advice.] "This time,
we will build it {wiser}," {he} said.

[So they started again.|So they began to work again.] [It took a long time, but they did not
stop.|{F} helped, and soon {fhe} was smiling again.|They helped each other.]

?The new {thing} was even better. [It had a little {color} flag on top.|They put a {color} flag
on it.|They painted a {color} star on it.] [This time, it was strong.|And this time, it did not
break.]

["Hooray!" they shouted.|"We did it!" said {F}.|{N} and {F} danced around it.] [They learned to
never give up.|They learned that it is good to try again.|{N} learned that working together
makes hard things easy.]
""",
    "honest": """
One {weather} day, {N} was {game}. [{He} knew that it was not allowed.|{His} {par} had said not
to do it.|{He} was not careful.]

[Crash!|Bang!|Oops!] The {color} {item} fell and broke. [It was the one that {his} {par} loved
most.|{His} {par} loved that {item}.]

[{N} was scared.|{N} did not know what to do.|{N} felt very bad.] [{He} hid the pieces under the
bed.|{He} hid behind the door.|{He} wanted to run away.]

[Soon, {his} friend {FF} came by. "What happened?" {fhe} asked. "I broke the {item}. I am afraid
to tell," said {N}.|{N} told {his} friend {FF} about it. "What should I do?" {he} asked.]

["You should tell the truth," said {F}. ["It is the right thing to do."|"You will feel
better."|"I will come with you."]|"It is always best to tell the truth," said {F}.]

So {N} went to {his} {par}. "[{Par}, I am sorry|I am so sorry, {Par}]. I broke your {color}
{item}," {he} said. [A tear ran down {his} face.|{He} looked at the floor.|]

{His} {par} was quiet for a moment. Then {phe} [smiled|gave {him} a hug]. "Thank you for telling
me the truth. [I am not angry|That was very brave]," {phe} said.

?[They picked up the pieces and fixed the {item} with glue.|Together, they made the {item} as
good as new.|{N} helped {his} {par} fix the {item}.]

[{N} felt much better.|{N} was so happy and light.|{N} thanked {F} for the good advice.] [{He}
learned that it is always best to tell the truth.|From that day on, {he} always told the
truth.|{He} learned to be honest and careful.]
""",
    "present": """
{N} had a best friend named {F}. [It was almost the birthday of {F}.|The next day was the
birthday of {F}.|Soon it would be the birthday of {F}.]

{N} wanted to give {fhim} something special. "But I have no money," {he} said [to {his}
{par}|and felt sad].

["You can make something," said {his} {par}. "The best gifts come from the heart."|"Why do you
not make a gift?" asked {his} {par}. {pHe} always had good ideas.]

So {N} [decided to make|made a plan to make] a {gift}. {He} looked for {parts} {where}. [{He}
found many {color} ones.|{He} picked the nice {color} ones.|The {color} ones were the best.]

?[But then {he} fell and lost most of them.|But then the bag broke, and they were gone.|But then
it began to rain, and {he} had to run home.] [{N} was sad, but {he} did not give up.|{N} almost
cried. Then {he} tried again.|{He} had to start again.]

?[{He} worked until it was dark.|{He} worked all evening.|{His} {par} helped {him} a little.] At
last, the {gift} was ready.

[The next day|On the birthday], {N} gave the {gift} to {F}. "[Happy birthday|This is for you],
{F}!" {he} said.

?{F} [opened {fhis} eyes wide|jumped up and down|smiled a big smile]. "[It is so pretty|It is
the best gift ever]! Thank you, {N}," {fhe} said.

?[They ate cake and sang songs.|Then they played and ate cake.|They danced and laughed all day.]

[{N} learned that a gift from the heart is the best gift.|{F} kept the {color} {gift} for
ever.|{N} was happy because {F} was happy.]
""",
    "astray": """
One {weather} [day|morning], {N} saw a {color} {lure}. [It was so pretty.|{He} wanted to see it
up close.|"Wait for me!" {he} called.]

{He} followed the {lure} [into the forest|over the hill and into the forest|down a long path].
[{He} ran and ran.|{He} did not look back.|{He} forgot what {his} {par} had said.]

Then the {lure} was gone. {N} looked around. [The trees were tall and dark.|{He} did not know
this place.|All the trees looked the same.] [{He} was lost!|"I am lost," {he} said.]

?[{N} sat down and began to cry.|{N} was scared and called for help.|{N} did not know what to
do.] It was getting [dark|late|cold].

[Just then|Suddenly], {guide_a} came out from behind a tree. "Why are you crying, little one?"
asked the {guide}. "I cannot find my way home," said {N}.

"[Do not be afraid|Do not worry]. I know every path here," said the {guide}. "[Come with
me|Follow me]." ["Thank you!" said {N}.|{N} was so glad.|{N} dried {his} eyes.||]

?They walked [past a big rock|past an old log|over a little bridge] and [through the tall
grass|along the river|up a hill]. [On the way, they told each other stories.|The moon came up
and lit the path.|The {guide} sang a little song.]

[At last, {N} saw {his} home.|Soon, {N} could see the light of {his} home.] {His} {par} was at
the door. "{N}! I was so worried," {phe} said and hugged {him}.

?{N} [thanked the {guide}|gave the {guide} a hug|waved to the {guide}]. [The {guide} smiled and
went back into the forest.|"You can visit me, but do not come alone," said the {guide}.]

[{N} learned not to go too far from home.|From that day on, {N} always told {his} {par} where
{he} went.|{N} never forgot the kind {guide}.]
""",
    "bake": """
One {weather} [day|morning], {N} wanted to bake {bake_a} with {his} {par}. [{He} was very
hungry.|It was {his} favorite food.|]

They looked in the kitchen. "Oh no, we have no {need}!" said {his} {par}. "[I will get some|I
can get some]," said {N}.

{He} took a {color} basket and went out. [On the way, {he} met {his} friend {FF}.|Soon, {he} saw
{his} friend {FF}.] "Where are you going?" asked {F}. "I need {need} for {bake_the}," said {N}.
"[Can I come too|Can I help you]?" asked {F}.

Together, they went to {source}. [They filled the basket with {need}.|They found a lot of {need}
there.|It took a while, but they got enough {need}.] {thanks}

?[But on the way back, {F} fell and hurt {fhis} knee.|But then the basket got too heavy for
{N}.|But on the way back, it began to rain.] [{help}|They helped each other and came home safe.]

?At home, they washed their hands. {N} [mixed everything in a big bowl|stirred and stirred] and
{F} [helped|put in the {need}]. [It smelled so good.|Soon the whole house smelled good.]

"[It is ready|Come and eat]!" said {his} {par}. [They all sat down at the table.|] [The {bake}
was warm and sweet.|It was the best {bake} ever.|{N} ate two big pieces.]

?[They gave some to an old neighbor, too.|{N} gave the last piece to {F}.|They kept a piece for
the next day.]

[{N} learned that food tastes best when you share it.|{N} learned that work is fun when friends
help.|Everyone was full and happy.]
""",
    "seed": """
One {weather} day, {his} {par} gave {N} a tiny seed. "[Take good care of it|Give it water every
day], and something nice will grow," {phe} said.

{N} [put the seed in a {color} pot|dug a little hole and put the seed in|put the seed in the
soft ground]. {He} gave it water and waited. [Nothing happened.|But nothing came up.]

The next day, {his} friend {FF} came by. "What are you doing?" asked {F}. "I am waiting for my
seed to grow," said {N}.

?["That is boring. Come and play," said {F}.|"I do not see anything," said {F}.|{F} laughed. "It
is just dirt," {fhe} said.] [But {N} did not give up.|But {N} stayed with {his} seed.]

?Every day, {N} gave the seed water. [It rained, and {he} waited.|{He} sang to it, too.|{He}
told it a story every night.] [Many days went by.|A week went by.]

[Then one morning, {N} saw something green!|Then one day, a tiny green leaf came up!] ["It is
growing!" {he} shouted.|{He} ran to tell {his} {par}.|{He} jumped with joy.]

The plant grew and grew. [Soon, it was as tall as {N}.|The sun was warm, and the rain was soft.]
At last, it was a big {color2} {plant}!

[{F} came to look. "It is so pretty! I was wrong," {fhe} said.|"Wow! You were right to wait,"
said {F}.|{F} could not believe it. "Can you teach me?" {fhe} asked.]

?[{N} gave {F} a seed of {fhis} own.|{N} smiled and gave {F} a new seed.] [They took care of it
together.|They put it in the ground together.]

[{N} learned that good things take time.|{N} learned to be patient.|{His} {par} was proud of
{him} because {he} did not give up.]
""",
    "magic": """
One {weather} [day|morning], {N} was playing near {place}. {He} saw something [shiny|bright]
{spot1}. It was a {color} {magic}!

{N} picked it up. Suddenly, the {magic} [began to glow|began to talk]. "I am a magic {magic}. I
can give you one wish," it said.

[{He} ran to show it to {his} friend {FF}.|{He} called {his} friend {FF}.] "What should I wish
for?" {he} asked. "[You could wish for|Wish for] a {color2} {toy}," said {F}.

[{N} thought about it for a long time.|{N} and {F} sat down and thought.|{N} wanted many
things.] Then {he} saw {needy}. [It made {him} sad.|{He} felt sorry.|{He} had an idea.||]

"I do not need a {toy}," said {N}. "I wish for {wish} for {needy}." [The {magic} glowed brighter
and brighter.|There was a flash of {color} light.|The {magic} began to hum.]

{granted}. [It was like a dream.|{N} and {F} cheered.|Everyone was so happy.||]

?"[You have a good heart|You are very kind], {N}," said the {magic}. "[Most people only think of
themselves|You did not think of yourself]." [Then it stopped glowing.|Then it was quiet.|]

?[{F} smiled at {N}.|{F} gave {N} a hug.] "[That was the best wish|I am proud to be your
friend]," {fhe} said.

?[{N} kept the {color} {magic} on a shelf at home.|{N} put the {magic} back for someone else to
find.|The {magic} was just a {magic} now, but {N} kept it.]

[{N} learned that helping others is the best wish of all.|{N} learned that being kind is a kind
of magic.|From that day on, {N} helped others every day.]
""",
    "race": """
{N} could run very fast. [{He} loved to win.|{He} told everyone about it.|{He} was proud of it.]

One {weather} day, there was a race {race}. The winner would get a {color} {toy}. "I will win,"
said {N}. {His} friend {FF} was in the race too.

?["Good luck, {N}," said {F}.|"I will do my best," said {F}.|{F} was a little scared.] "One,
two, three, go!" {someone}

[They ran and ran.|Everyone ran as fast as they could.] [{N} was in front.|Soon, {N} was first.]
[{He} could see the end of the race.|The others were far behind.||]

Suddenly, {he} heard a cry. {F} had [fallen into a hole|fallen over a stone|slipped in the mud].
"[Ouch! My foot hurts|Help! I cannot get up]!" cried {F}.

{N} looked at the end of the race. Then {he} looked at {F}. [It was hard to choose.|{He} wanted
to win so much.||] But {he} [stopped and ran back|turned around and ran back].

["Hold on to me," said {N}. {He} helped {F} up.|{He} gave {F} a hand and helped {fhim} up.]
[They walked to the end together.|Slowly, they went on together.] They were last.

?["I am sorry that you did not win," said {F}.|"You could have won," said {F}.] "[A friend is
better than a {toy}|You are more important than a race]," said {N}.

?[Everyone clapped for {N} anyway.|{His} {par} saw it all and clapped.|And then everyone cheered
for them.] [{His} {par} gave {him} a big hug.|They got the {color} {toy} for being so kind.|]

[{N} learned that helping a friend is better than winning.|{N} learned that there is more than
one way to win.|From that day on, {N} and {F} always ran together.]
""",
}
PLOTS = {
    name: tuple(" ".join(beat.split()) for beat in text.strip().split("\n\n"))
    for name, text in _PLOT_TEXTS.items()
}

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_DAY = re.compile(r"([.!?] )One \w+ (day|morning),")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_OBJECT = {"she": "her", "he": "him"}
_POSSESSIVE = {"she": "her", "he": "his"}


def tell(rng: random.Random, plot: str | None = None) -> Story:
    """Return one story, drawn with ``rng`` alone: the same state gives the same story.

    Without ``plot`` one of ``PLOTS`` is drawn. The text is one paragraph of plain ASCII.
    """
    if plot is None:
        plot = rng.choice(list(PLOTS))
    elif plot not in PLOTS:
        raise UserError(f"there is no plot {plot!r}; choose from {', '.join(PLOTS)}")
    while True:
        # Animals mostly have animals for friends, children have children.
        hero = _character(rng, animal=rng.random() < 0.4)
        friend = _character(rng, animal=rng.random() < (0.25 if hero.is_child else 0.7))
        # Two of the same name, or two rabbits, would be hard to tell apart.
        if friend.name == hero.name or (not hero.is_child and friend.kind == hero.kind):
            continue
        slots = _slots(rng, hero, friend)
        beats = [b for b in PLOTS[plot] if not b.startswith("?") or rng.random() < 0.5]
        beats = [rng.choice(OPENINGS), *beats, rng.choice(CLOSINGS)]
        text = " ".join(_fill(rng, beat.removeprefix("?"), slots) for beat in beats)
        if text.startswith("One "):  # the plot's own day is the same one
            text = text[:4] + _DAY.sub(r"\1That \2,", text[4:])
        text = _ARTICLE.sub(r"\1n ", " ".join(text.split()))
        if len(text.split()) <= MAX_WORDS:
            break
    others = [PARENTS[slots["par"]]]
    if "old man" in text:
        others.append("he")
    return Story(text, plot, hero, friend, tuple(others))


def stories(seed: int, count: int) -> Iterator[str]:
    """Yield the texts of ``count`` stories; ``seed`` fixes every one of them."""
    rng = random.Random(seed)
    for _ in range(count):
        yield tell(rng).text


def _fill(rng: random.Random, template: str, slots: Mapping[str, str]) -> str:
    """Decide the choices of a template, innermost first, and fill its slots."""
    # Slots may hold templates themselves, hence the loop.
    while "[" in template or "{" in template:
        while "[" in template:
            template = _CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), template)
        template = template.format_map(slots)
    return template


def _character(rng: random.Random, animal: bool) -> Character:
    pronoun = rng.choice(("she", "he"))
    if animal:
        names = SHE_ANIMALS if pronoun == "she" else HE_ANIMALS
        return Character(rng.choice(names), rng.choice(list(ANIMALS)), pronoun)
    if pronoun == "she":
        return Character(rng.choice(GIRLS), "girl", pronoun)
    return Character(rng.choice(BOYS), "boy", pronoun)


def _slots(rng: random.Random, hero: Character, friend: Character) -> dict[str, str]:
    """Draw the state of one story: every slot any plot may name, whichever plot it will be."""
    par = rng.choice(list(PARENTS))
    color, color2 = rng.sample(COLORS, 2)
    toy, toy2 = rng.sample(list(TOYS), 2)
    place = rng.choice(list(PLACES))
    spot1, spot2, spot3 = rng.sample(PLACES[place], 3)
    pet, stuck, tool, freed = rng.choice(RESCUES)
    fear, step, truth = rng.choice(FEARS)
    thing, stuff, ruin, wiser = rng.choice(BUILDS)
    item, game = rng.choice(BREAKS)
    bake, need, source, owner = rng.choice(BAKES)
    gift, parts, where = rng.choice(PRESENTS)
    needy, wish, granted = rng.choice(WISHES)
    guide = rng.choice([kind for kind in GUIDES if kind != hero.kind])
    slots = {
        "N": hero.name,
        "kind": hero.kind,
        "F": friend.name,
        # The kind of a friend is told once, with the name; a child needs no such word.
        "FF": friend.name if friend.is_child else f"{friend.name} the {friend.kind}",
        "trait": rng.choice(TRAITS),
        "home": rng.choice(CHILD_HOMES) if hero.is_child else ANIMALS[hero.kind],
        "life": rng.choice(LIFE),
        "weather": rng.choice(WEATHER),
        "par": par,
        "Par": par.capitalize(),
        "P_his": _POSSESSIVE[hero.pronoun],
        "color": color,
        "color2": color2,
        "toy": toy,
        "toy2": toy2,
        "toy_did": TOYS[toy][0],
        "toy_do": TOYS[toy][1],
        "place": place,
        "spot1": spot1,
        "spot2": spot2,
        "spot3": spot3,
        "pet": pet,
        "pet_color": rng.choice(PET_COLORS),
        "stuck": stuck,
        "tool": tool,
        "freed": freed,
        "fear": fear,
        "step": step,
        "truth": truth,
        "thing": thing,
        "stuff": stuff,
        "wiser": wiser,
        "ruin": ruin,
        "item": item,
        "game": game,
        "bake": bake,
        "bake_a": bake if bake == "bread" else f"a {bake}",
        "bake_the": f"the {bake}",
        "need": need,
        "source": source,
        "thanks": f'"Thank you, {owner}!" said {{N}}.' if owner in ("hens", "bees") else "",
        "help": "{F} and {N} held hands and went on slowly.",
        "gift": gift,
        "parts": parts,
        "where": where,
        "plant": rng.choice(PLANTS),
        "lure": rng.choice(LURES),
        "guide": guide,
        "guide_a": f"[a kind|an old|a wise] {guide}",
        "magic": rng.choice(MAGIC),
        "needy": needy,
        "wish": wish,
        "granted": granted,
        "race": rng.choice(RACES),
        "someone": rng.choice(("The race began.", "shouted an old bear.", "called {his} {par}.")),
    }
    for prefix, pronoun in (("", hero.pronoun), ("f", friend.pronoun), ("p", PARENTS[par])):
        slots[prefix + "he"] = pronoun
        slots[prefix + "He"] = pronoun.capitalize()
        slots[prefix + "him"] = _OBJECT[pronoun]
        slots[prefix + "his"] = _POSSESSIVE[pronoun]
        slots[prefix + "His"] = _POSSESSIVE[pronoun].capitalize()
    return slots
