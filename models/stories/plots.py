"""The plots of the stories, how stories open and close: templates for ``grammar.py``.

``[a|b|c]`` is a choice, ``{slot}`` is filled from the state of the story, and a beat that begins
with ``?`` is told in half of the stories.
"""

from __future__ import annotations

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
