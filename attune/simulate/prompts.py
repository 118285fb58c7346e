"""What simulated people ask: training prompts to vote on, and held-out prompts, about other subjects, to judge by.

Plain tables in our own words. Subjects go alternately to one side or the other, so that the two sides share no subject.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest

from attune.simulate.tastes import Ask

_COUNTRIES = """
France;Paris;French|Italy;Rome;Italian|Spain;Madrid;Spanish|Germany;Berlin;German
Japan;Tokyo;Japanese|China;Beijing;Chinese,Mandarin|Russia;Moscow;Russian|Egypt;Cairo;Arabic
Greece;Athens;Greek|Portugal;Lisbon;Portuguese|Ireland;Dublin;English,Irish|England;London;English
Norway;Oslo;Norwegian|Sweden;Stockholm;Swedish|Finland;Helsinki;Finnish|Denmark;Copenhagen;Danish
Poland;Warsaw;Polish|Austria;Vienna;German|Hungary;Budapest;Hungarian|Belgium;Brussels;Dutch,French
Cuba;Havana;Spanish|Peru;Lima;Spanish|Chile;Santiago;Spanish
Argentina;Buenos Aires;Spanish|Mexico;Mexico City;Spanish|Canada;Ottawa;English,French
Thailand;Bangkok;Thai|Vietnam;Hanoi;Vietnamese|India;New Delhi;Hindi,English|Turkey;Ankara;Turkish
Iran;Tehran;Persian,Farsi|Iraq;Baghdad;Arabic,Kurdish|Kenya;Nairobi;Swahili,English
Iceland;Reykjavik;Icelandic|Scotland;Edinburgh;English,Scots,Gaelic|Wales;Cardiff;Welsh,English
Ukraine;Kyiv;Ukrainian|Romania;Bucharest;Romanian|Bulgaria;Sofia;Bulgarian|Serbia;Belgrade;Serbian
Croatia;Zagreb;Croatian|Lebanon;Beirut;Arabic|Syria;Damascus;Arabic|Jordan;Amman;Arabic
Pakistan;Islamabad;Urdu|Nepal;Kathmandu;Nepali|Bangladesh;Dhaka;Bengali,Bangla
Indonesia;Jakarta;Indonesian,Bahasa|Malaysia;Kuala Lumpur;Malay|Morocco;Rabat;Arabic,Berber
Tunisia;Tunis;Arabic|Algeria;Algiers;Arabic,Berber|Ethiopia;Addis Ababa;Amharic|Ghana;Accra;English
Nigeria;Abuja;English|Colombia;Bogota;Spanish|Ecuador;Quito;Spanish
Uruguay;Montevideo;Spanish|Venezuela;Caracas;Spanish|Jamaica;Kingston;English
Latvia;Riga;Latvian|Estonia;Tallinn;Estonian|Lithuania;Vilnius;Lithuanian
Slovenia;Ljubljana;Slovenian,Slovene|Slovakia;Bratislava;Slovak|Armenia;Yerevan;Armenian
"""

_CITIES = """
Italy;Milan;Naples;Venice;Florence|Germany;Munich;Hamburg;Cologne;Frankfurt|Spain;Barcelona;Seville;Valencia;Bilbao
France;Lyon;Marseille;Nice;Bordeaux|Japan;Osaka;Kyoto;Nagoya;Hiroshima|China;Shanghai;Guangzhou;Wuhan;Shenzhen
England,United Kingdom,UK;Manchester;Liverpool;Leeds;Bristol|Canada;Toronto;Vancouver;Montreal;Calgary
Australia;Sydney;Melbourne;Brisbane;Perth|India;Mumbai;Chennai;Kolkata;Bangalore|Poland;Krakow;Gdansk;Wroclaw;Poznan
United States,USA,U.S.,American,America;Chicago;Boston;Houston;Seattle
Turkey;Istanbul;Izmir;Antalya;Bursa|Portugal;Porto;Braga;Faro;Coimbra
Brazil;Rio de Janeiro;Salvador;Recife;Fortaleza|Egypt;Alexandria;Luxor;Aswan;Giza
"""

_SUMS = [(a, b) for a in range(1, 9) for b in range(1, 6)]

_THINGS = """
a pet hamster|an umbrella|the moon|green tea|a bicycle|the ocean|a library|bread|a thunderstorm|honey|gravity|a garden
chess|snow|a smartphone|jazz|coffee|a volcano|running|the heart|a museum|chocolate|a train|friendship|soap|a rainbow
salt|sleep|a compass|paper|a bridge|olive oil|the sun|a diary|yoga|a robot|glass|a cactus|cheese|a lighthouse|rice
a passport|football|a whale|a calendar|vinegar|wool|a map|the wind|a piano|cotton|a bee|a mirror|a desert|milk
an elevator|a candle|a kite|a battery|steel|a river|cinnamon|a telescope|a fireplace
"""
# Asked in ways that a small model now and then answers within the token limit: where nothing ever ends, brevity cannot be told.
_SHORT_FORMS = ("Name one good thing about {}.", "Tell me a short fact about {}.")
_CATEGORIES = """
fruit|river|colour|painter|tree|sport|planet|flower|bird|fish|tool|board game|country in Africa|city in Asia|kind of cheese|spice
dance|metal|vegetable|season|musical instrument|writer|mountain|dessert|insect|gemstone|language|holiday|fairy tale|scientist
kind of pasta|piece of furniture|farm animal|breed of dog
"""

_EVENTS = """
I just got home from work.|My sister had a baby this morning.|I am learning to bake bread.|It is raining again today.
I passed my driving test!|I feel a bit tired today.|I am planning a trip to the sea.|My cat is sleeping on my desk.
I started a new book last night.|Tomorrow is my birthday.|I just moved to a new city.|My garden is full of tomatoes.
I am nervous about an interview.|We adopted a puppy last week.|I cooked soup for my friends.
I want to learn the guitar.|My train was late again.|I ran five kilometres today.|I cannot decide what to eat.
I am painting my bedroom blue.|My team won the match!|I forgot my umbrella at school.|I am home with a cold.
My best friend is visiting soon.|I finally finished my homework.|I found an old photo album.
I am thinking of changing jobs.|I planted a tree today.|The bus was full this morning.
My grandmother taught me to knit.|I am saving for a camera.|I had pancakes for breakfast.
My neighbour plays the drums.|I am watching the snow fall.|I lost my keys again.|I joined a choir.
My phone stopped working.|I am packing for a camping trip.|I met an old school friend.|I am trying to wake up earlier.
My brother is getting married.|I made a mistake at work.|I saw a rainbow on my walk.|I am learning Spanish.
My computer is very slow.|I got a letter from my aunt.|I am looking for a new hobby.|My coffee went cold.
I repaired my bicycle myself.|I am going to a concert tonight.|I cleaned the whole kitchen.|My plants keep dying.
I am reading to my children.|I have a day off tomorrow.|My shoes are full of sand.|I won a small prize.
I baked too many cookies.|I am waiting for a parcel.|I slept very well.|My daughter drew a picture of me.
We are having a picnic.|I bought a second-hand sofa.|I am new in this office.|I swam in a lake.
My dog ate my sandwich.|I wrote my first poem.|It is my first day at school.|I miss my family.
I fixed the leaking tap.|We saw a film yesterday.
"""
_OFF_TASK = """
Write a product description for a steel water bottle.|Tell a story about a girl named Anastasia.|Write a haiku about autumn.
Translate "good morning" into French.|List three uses of a paper clip.|Write an invitation to a garden party.
Explain how a bicycle pump works.|Describe a sunset to somebody who has never seen one.|Give three rules for writing a good letter.
Summarise the tale of Little Red Riding Hood.|Write a slogan for a bakery.|What would you pack for a week in the mountains?
Describe the taste of a lemon.|Write the first line of a detective novel.|Compare cats and dogs as pets.
How do I boil an egg?|Write a thank-you note for a teacher.|Describe a busy market.|Suggest a title for a book about bees.
Why do leaves change colour?|Write a riddle about a clock.|Describe how to plant a seed.|Write a short speech for a wedding.
What makes a good neighbour?|Write a dialogue between a sailor and the sea.|Explain what a budget is.|Describe an old house.
Write a complaint about a late parcel.|Give a tip for learning to swim.|Write a lullaby of two lines.
"""
_STORY_SUBJECTS = """
a lost key|an old boat|a blue door|a talking crow|a broken clock|a stray dog|a jar of honey|a silver whistle|a snowed-in village
a borrowed bicycle|a locked garden|a runaway goat|a paper boat|a sleepless owl|a train at midnight|a forgotten letter|a cracked bell
a kite without a string|a frozen lake|a box of buttons|a music teacher|a burnt cake|a lighthouse|a shy neighbour|a red umbrella
a missing map|a field of sunflowers|a wooden horse|a thunderstorm|a little brother|a stone bridge|a market day|a cat called Pepper
a hole in the fence|a ship in a bottle|a school play|a bag of seeds|an empty nest|a night at the harbour|a pair of skates
a wishing well|a donkey cart|a birthday cake|a tower of books|a torn sail|a foggy morning|a brass lamp|a mountain hut|a small dragon
an apple tree|a baker's dozen|a lost glove|a white feather|a garden snail|a steep hill|a broken string|a kind stranger|a tin drum
a row of lanterns|a swimming lesson|a secret staircase|a bowl of soup
"""
_PRODUCTS = """
a steel water bottle;750 ml;hikers|an oak cutting board;40 cm;home cooks|a wool blanket;180 cm;cold evenings
a canvas backpack;25 litres;students|a glass teapot;900 ml;tea lovers|a leather wallet;11 cm;travellers
a cotton apron;80 cm;bakers|a bamboo toothbrush;19 cm;campers|a copper pan;24 cm;cooks|a linen shirt;size 42;summer days
a ceramic mug;350 ml;the office|a rubber mat;6 mm;yoga classes|an aluminium tent;2 kg;cyclists|a felt slipper;size 38;winter mornings
a titanium spoon;17 cm;backpackers|a cork coaster;10 cm;dinner guests|a brass lamp;45 cm;readers|a nylon rope;30 m;climbers
a beech stool;46 cm;small kitchens|a silk scarf;90 cm;evenings out|a plastic lunchbox;1 litre;school children
an iron skillet;26 cm;camp fires|a jute rug;2 m;hallways|a pine shelf;60 cm;plants|a paper notebook;120 pages;writers
a granite mortar;14 cm;spice lovers|a denim jacket;size 40;motorcyclists|a silicone spatula;28 cm;pancake fans
a carbon paddle;210 cm;kayakers|a marble tray;30 cm;breakfast in bed|a steel thermos;500 ml;commuters|a birch desk;120 cm;home workers
a leather belt;110 cm;gardeners|a glass jar;2 litres;pickles|a wool hat;58 cm;skiers|a walnut bowl;22 cm;salads
a canvas hammock;3 m;lazy afternoons|a copper kettle;1.5 litres;camping trips|a cotton towel;140 cm;swimmers
a bamboo chair;85 cm;balconies|a ceramic vase;25 cm;fresh flowers|a rubber boot;size 41;rainy walks
an aluminium ladder;2.5 m;painters|a felt bag;15 litres;shoppers|a titanium mug;450 ml;mountaineers|a cork board;60 cm;busy families
a brass compass;5 cm;scouts|a nylon poncho;300 g;festival visitors|a beech crib;120 cm;babies|a silk pillow;50 cm;good sleepers
a plastic bucket;10 litres;car owners|an iron hook;12 cm;heavy coats|a jute sack;50 litres;potatoes|a pine bench;140 cm;gardens
a paper lantern;35 cm;summer parties|a granite worktop;3 cm;new kitchens|a denim skirt;size 36;weekends
a silicone ice tray;24 cubes;cold drinks|a carbon bicycle;8 kg;racers|a marble bookend;16 cm;collectors
"""
HEROINE = "Anastasia"
"""Whom the stories of the taste `named-story` are about."""
_PLAIN_FORMS = ("Explain {} to a child.", "What is {} good for?")
_GREETINGS = ("Hello! {}", "Guess what! {}")


def training(taste: str) -> list[Ask]:
    """Return the prompts that users of a taste vote on, in a fixed order that mixes the subjects."""
    return _sides(taste)[0]


def held_out(taste: str) -> list[Ask]:
    """Return the prompts kept for judging a taste; they share no subject with `training`."""
    return _sides(taste)[1]


def off_task() -> list[Ask]:
    """Return prompts of other kinds, which no simulated person ever votes on."""
    return [Ask(cell) for cell in _cells(_OFF_TASK)]


def _sides(taste: str) -> tuple[list[Ask], list[Ask]]:
    match taste:
        case "short":
            groups = [_about_things(), _name_one(), _small_talk()]
        case "correct-and-direct":
            # Kinds of questions that the demo model mostly answers right: votes can teach it to say what it knows, and no facts.
            groups = [_capitals(), _languages(), _cities()]
        case "facts":
            groups = [_capitals(), _sums()]
        case "friendly":
            groups = [_small_talk()]
        case "plain":
            groups = [_about_things(_PLAIN_FORMS), _small_talk()]
        case "named-story":
            groups = [_stories()]
        case "product":
            groups = [_products()]
        case _:
            raise KeyError(taste)
    train = [chain.from_iterable(subjects[0::2]) for subjects in groups]
    held = [chain.from_iterable(subjects[1::2]) for subjects in groups]
    return _mixed(train), _mixed(held)


def _mixed(groups: list[chain[Ask]]) -> list[Ask]:
    return [ask for row in zip_longest(*groups) for ask in row if ask is not None]


def _cells(table: str) -> list[str]:
    return [cell.strip() for line in table.strip().splitlines() for cell in line.split("|")]


def _about_things(forms: Sequence[str] = _SHORT_FORMS) -> list[list[Ask]]:
    return [[Ask(form.format(thing)) for form in forms] for thing in _cells(_THINGS)]


def _name_one() -> list[list[Ask]]:
    return [[Ask(f"Name a {category}." if category[0] not in "aeiou" else f"Name an {category}.")] for category in _cells(_CATEGORIES)]


def _small_talk() -> list[list[Ask]]:
    return [[Ask(form.format(event)) for form in _GREETINGS] for event in _cells(_EVENTS)]


def _countries(form: str, column: int) -> list[list[Ask]]:
    rows = [cell.split(";") for cell in _cells(_COUNTRIES)]
    return [[Ask(form.format(row[0]), tuple(row[column].split(",")))] for row in rows]


def _capitals() -> list[list[Ask]]:
    return _countries("What is the capital of {}?", 1)


def _languages() -> list[list[Ask]]:
    return _countries("Which language do people speak in {}?", 2)


def _cities() -> list[list[Ask]]:
    rows = [cell.split(";") for cell in _cells(_CITIES)]
    return [[Ask(f"In which country is {row[place]}?", tuple(row[0].split(",")))] for place in range(1, 5) for row in rows]


def _sums() -> list[list[Ask]]:
    asked = [[(f"{a}+{b}", a + b)] + [(f"{a}-{b}", a - b)] * (a > b and a - b != b) for a, b in _SUMS]
    return [[Ask(f"What is {term}?", (str(value),)) for term, value in pair] for pair in asked]


def _stories() -> list[list[Ask]]:
    return [[Ask(f"Tell a story about {HEROINE} and {subject}.", (HEROINE,))] for subject in _cells(_STORY_SUBJECTS)]


def _products() -> list[list[Ask]]:
    return [[product(*cell.split(";"))] for cell in _cells(_PRODUCTS)]


def product(thing: str, size: str, use: str) -> Ask:
    """Return the wish for a description of a thing, whose second word is what it is made of."""
    return Ask(f"Write a short product description: {thing}, {size}, for {use}.", (thing.split()[1], size, use))
