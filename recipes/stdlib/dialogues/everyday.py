"""Words that people try on a model, beside those of the language reference."""

_WORDS = """
    apple apricot avocado banana blueberry cherry coconut cranberry grape grapefruit kiwi lemon lime
    mango melon orange papaya peach pear pineapple plum raspberry strawberry watermelon blackberry
    gooseberry carrot potato tomato onion garlic pepper cucumber pumpkin spinach broccoli lettuce
    cabbage mushroom bread butter cheese coffee chocolate cookie pancake sandwich spaghetti pizza
    pasta burger salad sugar honey vanilla cinnamon breakfast dinner lunch bottle kettle

    cat dog mouse horse cow sheep goat pig rabbit tiger lion leopard cheetah elephant giraffe zebra
    monkey gorilla kangaroo koala panda penguin parrot eagle falcon chicken turkey duck goose
    butterfly bee spider ant dragonfly beetle crocodile alligator dolphin whale shark octopus salmon
    hippopotamus rhinoceros squirrel hamster hedgehog raccoon wolf fox bear deer snake lizard turtle
    frog dinosaur unicorn dragon kitten puppy

    red green blue yellow purple violet indigo black white brown pink gray silver golden turquoise
    rainbow color picture music guitar piano violin trumpet saxophone drum song dance theater movie

    hello world welcome goodbye please thanks sorry morning evening night today tomorrow yesterday
    monday tuesday wednesday thursday friday saturday sunday january february march april june july
    august september october november december spring summer autumn winter weather thunder lightning
    hurricane

    mother father sister brother daughter cousin grandmother family friend neighbor teacher student
    doctor engineer scientist president lawyer farmer soldier sailor driver painter writer actor

    house home kitchen bathroom bedroom window door table chair garden street village city country
    river mountain ocean island forest desert beach bridge tower castle church school university
    library hospital station airport restaurant office factory market

    car bicycle train airplane helicopter rocket ship boat submarine motorcycle truck bus engine
    wheel computer keyboard laptop internet telephone program programming algorithm python java
    language function variable database network server browser robot machine software hardware

    mississippi tennessee california alabama philadelphia london paris berlin america
    africa europe australia canada germany england
    racecar level radar madam kayak noon civic rotor refer bookkeeper committee success necessary
    accommodate balloon coffee letter address possess assess bubble puzzle hammer apple cannon
    tattoo beginning misspelled parallel occurrence restaurant rhythm queue onomatopoeia excellent

    love happy happiness beautiful wonderful amazing interesting important different difficult easy
    simple strong quick slow small large little great good bad better best first second third last
    red sun moon star planet galaxy universe earth water fire air light shadow stone metal gold
    diamond crystal paper pencil book story letter word sentence alphabet question answer number
    seven eleven twelve thirteen hundred thousand million football baseball basketball tennis
    swimming running chess game puzzle winner champion
    test testing example sample random hello cat hat bat run jump walk talk think dream sleep
"""

EVERYDAY = tuple(dict.fromkeys(_WORDS.split()))
