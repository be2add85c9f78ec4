"""The words of the stories: who is in them, where they are, and what can happen to what."""

from __future__ import annotations

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
