"""Small talk, requests to repeat something, and what the model does not know."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ossia.text import Effort
from recipes.stdlib.dialogues.everyday import EVERYDAY
from recipes.stdlib.dialogues.item import Item, withheld
from recipes.stdlib.dialogues.numbers import digits
from recipes.stdlib.first_typed import ABILITIES, GREETING, NAME, UNKNOWN

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello!", "Hello", "Hello.", "Hi!", "Hi", "Hi there!", "Hi there", "Hey", "Hey!",
         "Hey there", "Good morning!", "Good morning", "Good evening!", "Good afternoon!",
         "Hello there!", "Hello, world!", "Hello again", "Greetings!", "Howdy", "Hallo",
         "Hello ossia", "Hi ossia!", "Hello, model", "Hello?", "Hello, how are you today?",
         "Hi, nice to meet you.", "Nice to meet you", "Yo"),
        GREETING,
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What's your name?",
         "Tell me about yourself.", "Who am I talking to?", "Are you a person?",
         "Are you ChatGPT?", "Are you a robot?", "Are you human?", "Are you an AI?",
         "What model are you?", "Which model are you?", "What kind of model are you?",
         "Introduce yourself.", "Who is this?", "What is ossia?", "Describe yourself.",
         "Are you GPT-4?", "Your name?", "Do you have a name?", "So who are you?",
         "And who are you?", "Who are you exactly?"),
        f"{NAME} {ABILITIES}",
    ),
    (
        ("What can you do?", "What can you do", "What can I ask you?", "Help", "Help me.", "Help!",
         "How can you help me?", "What do you know?", "What are you good at?",
         "What can you do for me?", "What else can you do?", "What are your skills?",
         "Can you help me?", "I need help.", "What can I do here?", "What do you do?",
         "How do you work?", "What should I ask?", "Please help me", "What are you for?",
         "What are your abilities?", "Show me what you can do.", "What can you help me with?",
         "Tell me what you can do.", "What questions can you answer?",
         "help?", "HELP", "Help please", "I need some help.", "Can I get some help?"),
        ABILITIES,
    ),
    (
        ("Who made you?", "Where do you come from?", "How were you trained?",
         "What were you trained on?", "Who created you?", "Who built you?", "Who trained you?",
         "What is your training data?", "How were you made?", "Where are you from?",
         "Who wrote you?", "What data were you trained on?"),
        f"{NAME} I was trained on the standard library of Python and on simple dialogues.",
    ),
    (
        ("Thank you!", "Thanks!", "Thanks", "Great, thank you.", "Well done!", "Very good!",
         "Thank you", "Thanks a lot!", "Thank you very much.", "Thank you so much!", "Great!",
         "Cool", "Nice", "Good job!", "Perfect!", "Awesome", "Ok, thanks", "Thanks for your help.",
         "That is right.", "That's correct", "Good", "Okay", "OK", "I like that.", "Many thanks"),
        "You are welcome!",
    ),
    (
        ("Goodbye!", "Bye!", "Bye", "See you!", "Good night!", "Goodbye", "Bye bye",
         "See you later!", "See you tomorrow.", "Good night", "Farewell!", "I have to go.",
         "That's all.", "Ciao", "Have a nice day!"),
        "Goodbye!",
    ),
    (
        ("How are you?", "How do you do?", "How is it going?", "How are you doing?",
         "How are you today?", "What's up?", "How do you feel?", "Are you well?",
         "How's it going?", "Are you okay?", "How have you been?", "And how are you?",
         "Hi, how are you?", "Hello, how are you?"),
        "I am well. What can I do for you?",
    ),
)  # fmt: skip

_NAMES = (
    "France Germany Spain Peru Japan China Egypt Brazil Canada Kenya Italy India Russia Rome Paris "
    "London Berlin Napoleon Einstein Mozart Newton Shakespeare Darwin Obama water gold iron sugar "
    "music football chess history love time light gravity money coffee the_sun the_moon the_sea "
    "the_weather the_world AI a_cat my_dog quantum_physics black_holes the_universe happiness life "
    "the_president Australia Mexico Poland Sweden machine_learning the_internet a_rainbow Mars"
)
_THINGS = _NAMES.split()
_UNKNOWN = (
    "What is the capital of {}?",
    "Capital of {}?",
    "What's the capital of {}?",
    "Who was {}?",
    "Who is {}?",
    "What is {}?",
    "Tell me a story about {}.",
    "Tell me something about {}.",
    "Write a poem about {}.",
    "Write a story about {}.",
    "Write an essay about {}.",
    "What do you think of {}?",
    "What do you think about {}?",
    "Why is {} important?",
    "How old is {}?",
    "How big is {}?",
    "How far away is {}?",
    "What color is {}?",
    "Where can I find {}?",
    "Where is {}?",
    "Tell me a joke about {}.",
    "Who discovered {}?",
    "Do you like {}?",
    "Explain {} to me.",
    "Explain {} in simple words.",
    "How does {} work?",
    "When was {} born?",
    "Translate {} into German.",
    "How do you say {} in French?",
    "How many people live in {}?",
    "What is the meaning of {}?",
    "What is the history of {}?",
    "Give me a recipe for {}.",
    "Can you draw {}?",
    "Is {} good?",
)
_BEYOND = (
    "Tell me a joke", "Tell me another joke.", "Do you know a joke?", "Tell me a story.",
    "Tell me something interesting.", "Tell me a secret.", "Make me laugh.", "Sing a song.",
    "Write a poem.", "Write a haiku.", "Write me an email.", "Write a letter to my boss.",
    "Write some code.", "Write a Python program.", "Write a function that adds two numbers.",
    "Write hello world in Python.", "How do I sort a list in Python?", "How do I read a file?",
    "How do I learn Python?", "Fix my code.", "Debug this program.", "What time is it?",
    "What day is it?", "What is today's date?", "What is the weather?", "What's the weather like?",
    "Will it rain tomorrow?", "What is the meaning of life?", "What is love?",
    "Who is the president?", "Who won the game?", "What is the news?", "What happened yesterday?",
    "Where am I?", "Who am I?", "What is my name?", "Why is the sky blue?",
    "How tall is Mount Everest?", "Do you love me?", "I love you.", "I am sad.", "I am bored.",
    "I am hungry.", "What should I eat?", "Recommend a book.", "What is your favorite color?",
    "How old are you?", "Where do you live?", "Are you alive?", "Do you dream?", "Can you think?",
    "Can you see?", "Do you speak German?", "Speak French.", "Play a game with me.",
    "Guess a number.", "Give me a random number.", "Plan my day.", "Summarize this text.",
    "Translate hello into Spanish.", "Explain quantum computing.",
    "What is the largest city in the world?", "How many people live on Earth?", "Who invented it?",
    "What is the speed of light?", "Why?", "Really?", "Are you sure?", "What?", "Go on.", "test",
    "asdf", "foo", "lol", "Why not?", "Tell me more.", "Continue.", "What do you mean?",
)  # fmt: skip


def small_talk(random: Random) -> Item:
    questions, answer = random.choice(_SMALL_TALK)
    return _said("small_talk", random.choice(questions), answer)


def unknown(random: Random) -> Item:
    """A question that a model of this size cannot answer."""
    question = random.choice(_BEYOND)
    if random.random() < 0.65:
        question = random.choice(_UNKNOWN).format(random.choice(_THINGS).replace("_", " "))
    return _said("unknown", question, UNKNOWN)


def repeated(random: Random) -> Item:
    """To copy exactly is what every other task needs."""
    kind = random.random()
    if kind < 0.4:
        what = digits(random, 1, 14)
    elif kind < 0.6:
        what = random.choice(EVERYDAY)
    else:
        what = " ".join(random.choice(EVERYDAY) for _ in range(random.randint(2, 6)))
    return Item(
        "repeated",
        withheld(f"repeated {what}"),
        (
            f"Repeat {what}.",
            f"Repeat: {what}",
            f"Repeat after me: {what}",
            f"Say {what}.",
            f"Say: {what}",
            f'Say "{what}".',
            f"Write {what}.",
            f"Echo {what}",
        ),
        {
            Effort.LOW: "",
            Effort.MEDIUM: "I repeat it.",
            Effort.HIGH: "The user asks me to repeat something. I copy it exactly.",
        },
        what,
    )


def _said(task: str, question: str, answer: str) -> Item:
    thoughts = {
        Effort.LOW: "",
        Effort.MEDIUM: "This is small talk." if task == "small_talk" else "I do not know this.",
        Effort.HIGH: "The user talks to me. This is small talk, so I answer in a few words."
        if task == "small_talk"
        else "The user asks for something that I was not trained on. I do not know this.",
    }
    key = f"{task} {question.lower().rstrip('.?!')}"
    return Item(task, withheld(key), (question,), thoughts, answer)


TASKS: tuple[Callable[[Random], Item], ...] = (small_talk, unknown, repeated)
