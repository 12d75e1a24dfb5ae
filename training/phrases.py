# ruff: noqa: E501  the tables are read by line
"""The words of questions and answers in both languages: tables only.

Questions vary as people's do; an answer has one form.
"""

from __future__ import annotations

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "en": (
            "What is this?", "What's this?", "what is this", "What is in the picture?", "Name this.",
            "What is it?", "Name the thing in the picture.", "What do you see?", "What is in this picture?",
            "Can you name this picture?", "Tell me what this is.", "Which thing is drawn here?",
            "What is shown here? One or two words, please.", "Name the object.", "Identify this.",
            "What is in this image?", "What can you see in the image?", "What does this drawing show?",
        ),
        "zh": (
            "这是什么？", "这是什么", "图里是什么？", "图片里有什么？", "这张图画的是什么？", "请说出它的名字。",
            "你看到了什么？", "图中是什么东西？", "它是什么？", "认出来了吗？这是什么？", "画的是什么",
            "请告诉我这是什么。", "这个叫什么？", "图上的东西叫什么名字？", "看图，这是什么?",
        ),
    },
    "sentence": {
        "en": (
            "Describe the picture.", "Describe this image.", "Please describe what you see.",
            "What does the picture show? Answer in a sentence.", "Tell me about this picture.",
            "Answer in a full sentence: what is this?", "Describe this image in one sentence.",
            "Please describe the image briefly.",
        ),
        "zh": (
            "描述一下这张图片。", "请描述这幅图。", "用一句话说说图里有什么。", "请用完整的句子回答：这是什么？",
            "介绍一下这张图。", "请简单描述图片内容。", "说说这张图。",
        ),
    },
    "list": {
        "en": (
            "What is in the picture, from left to right?", "List everything from left to right.",
            "Name all the things, left to right.", "Which things do you see? Go from left to right.",
            "What are these, from left to right?", "List the objects in the image.",
            "What things are in the picture?", "Name everything in this picture.",
            "What is in the picture?", "What do you see?",
        ),
        "zh": (
            "从左到右，图里有什么？", "请从左到右列出所有东西。", "从左到右依次是什么？", "图里都有什么？",
            "列出图中的物体。", "图中有哪些东西？从左往右说。", "图片里有什么？", "你看到了什么？",
        ),
    },
    "count": {
        "en": (
            "How many things are in the picture?", "How many objects are there?", "Count the things.",
            "How many do you see?", "How many drawings are in this image?", "Count the objects in the image.",
        ),
        "zh": (
            "图里有几个东西？", "一共有几个？", "数一数有几个物体。", "图中有多少个东西？", "有几个？", "数数看，一共几个？",
        ),
    },
    "count_of": {
        "en": (
            "How many times is this in the picture: {name}?", "Count this: {name}. How many?",
            "{name}: how many are there?", "How many of these do you see: {name}?",
        ),
        "zh": ("图里有几个{name}？", "数一数{name}有几个。", "有多少个{name}？", "{name}一共有几个？"),
    },
    "where": {
        "en": (
            "Where is the {name}?", "Where in the picture is the {name}?", "In which part of the image is the {name}?",
            "Find the {name}. Where is it?", "where is the {name}", "What is the position of the {name}?",
        ),
        "zh": ("{name}在哪里？", "{name}在图的什么位置？", "{name}在图片的哪个位置？", "找一找{name}，它在哪儿？", "{name}在哪"),
    },
    "what_at": {
        "en": (
            "What is at the {place}?", "What do you see at the {place}?", "Name the thing at the {place} of the picture.",
            "Which thing is at the {place}?",
        ),
        "zh": ("{place}是什么？", "图的{place}有什么？", "{place}的东西叫什么？", "图片{place}画的是什么？"),
    },
    "read": {
        "en": (
            "What does it say?", "Read the text.", "What is written here?", "What does the sign say?",
            "Read this.", "Which text is in the picture?", "What text do you see?",
        ),
        "zh": ("上面写着什么？", "读出图中的文字。", "图里写了什么？", "请读一读。", "图上的字是什么？", "写的是什么"),
    },
    "digits": {
        "en": (
            "Which number is this?", "Read the number.", "What number do you see?", "What is the number in the picture?",
            "Read the digits.",
        ),
        "zh": ("这是什么数字？", "图里的数字是多少？", "读出这个数。", "数字是多少？", "请读出数字。"),
    },
    "colour": {
        "en": (
            "What colour is it?", "What color is it?", "What is its main colour?", "Which colour does it have?",
            "What color is the {name}?", "What colour is the {name}?", "Which color is this?",
        ),
        "zh": ("它是什么颜色的？", "这是什么颜色？", "主要是什么颜色？", "{name}是什么颜色的？", "什么颜色"),
    },
    "is_it": {
        "en": ("Is this a {name}?", "Is it a {name}?", "Does the picture show this: {name}?", "Do you see a {name} here?"),
        "zh": ("这是{name}吗？", "图里是{name}吗？", "它是不是{name}？", "图中的是{name}吗？"),
    },
    "is_there": {
        "en": ("Is there a {name} in the picture?", "Can you see a {name}?", "Does the image contain this: {name}?", "Is there a {name}?"),
        "zh": ("图里有{name}吗？", "有没有{name}？", "能看到{name}吗？", "图中有{name}吗？"),
    },
    "same": {
        "en": (
            "Do both pictures show the same thing?", "Are these the same?", "Is it the same thing in both pictures?",
            "Compare the two pictures: same or different?", "Are the two images of the same thing?",
        ),
        "zh": ("两张图是同一种东西吗？", "这两张图画的一样吗？", "比较两张图，是一样的吗？", "两幅图里是同样的东西吗？"),
    },
    "which": {
        "en": (
            "Which picture shows the {name}?", "In which picture is the {name}?", "The first or the second: which is the {name}?",
            "Which image is the {name}, the first or the second?",
        ),
        "zh": ("哪张图是{name}？", "{name}在第几张图？", "第一张还是第二张是{name}？", "哪一张画的是{name}？"),
    },
    "both": {
        "en": ("What do the two pictures show?", "Name both pictures.", "What is in each picture?", "What is in the first and in the second picture?"),
        "zh": ("两张图分别是什么？", "分别说出两张图里的东西。", "第一张和第二张各是什么？", "这两张图里有什么？"),
    },
}  # fmt: skip

FOLLOW_NAME = {
    "en": ("And this one?", "And this?", "What about this one?", "Now this: what is it?", "What is this one?"),
    "zh": ("那这个呢？", "这个呢？", "那这张呢？", "再看这张，是什么？"),
}  # fmt: skip

# About one of two pictures. Not in the tokenizer's corpus, which is to stay as it is.
OF_TWO = {
    "en": (
        ("What is in the first picture?", "What does the first picture show?", "What is the first one?", "And the first?"),
        ("What is in the second picture?", "What does the second picture show?", "What is the second one?", "And the second?"),
    ),
    "zh": (
        ("第一张图是什么？", "第一张画的是什么？", "第一张呢？", "第一张图里有什么？"),
        ("第二张图是什么？", "第二张画的是什么？", "第二张呢？", "第二张图里有什么？"),
    ),
}  # fmt: skip

ANSWERS: dict[str, dict[str, str]] = {
    "sentence": {"en": "The picture shows {name}.", "zh": "图中是{name}。"},
    "sentence_many": {"en": "The picture shows, from left to right: {name}.", "zh": "图中从左到右是{name}。"},
    "where": {"en": "{place}.", "zh": "{place}。"},
    "yes_is": {"en": "Yes, it is {name}.", "zh": "是的，这是{name}。"},
    "no_is": {"en": "No, it is {name}.", "zh": "不是，这是{name}。"},
    "yes_there": {"en": "Yes.", "zh": "有。"},
    "no_there": {"en": "No.", "zh": "没有。"},
    "same": {"en": "Yes, both show {name}.", "zh": "是的，都是{name}。"},
    "different": {"en": "No. The first shows {name}, the second {other}.", "zh": "不是。第一张是{name}，第二张是{other}。"},
    "first": {"en": "The first.", "zh": "第一张。"},
    "second": {"en": "The second.", "zh": "第二张。"},
    "both": {"en": "The first shows {name}, the second {other}.", "zh": "第一张是{name}，第二张是{other}。"},
}  # fmt: skip

PLACES = {
    "top left": "左上角", "top": "上方", "top right": "右上角", "left": "左边", "middle": "中间",
    "right": "右边", "bottom left": "左下角", "bottom": "下方", "bottom right": "右下角",
}  # fmt: skip
PLACE_WORDS = {
    "en": {"middle": ("middle", "center", "centre"), "top left": ("top left", "upper left", "top left corner"),
           "top right": ("top right", "upper right", "top right corner"),
           "bottom left": ("bottom left", "lower left", "bottom left corner"),
           "bottom right": ("bottom right", "lower right", "bottom right corner")},
    "zh": {"middle": ("中间", "中央", "正中间"), "top": ("上方", "上面", "上边"), "bottom": ("下方", "下面", "下边"),
           "left": ("左边", "左侧", "左面"), "right": ("右边", "右侧", "右面")},
}  # fmt: skip

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant that looks at pictures.",
    "Answer briefly.", "You name drawings.", "你是一个乐于助人的助手。", "你是书斋的小助手，请简短回答。",
    "你会看图说话。", "请用简短的话回答。",
)  # fmt: skip

# (questions, answer), in pairs of languages.
_I_AM = (
    "I am a tiny vision model that comes with Shuzhai. I name drawings; I do not know photographs."
)
_WO_SHI = "我是书斋自带的小小识图模型，认识图画，不认识照片。"
_CAN = (
    "Send me a picture: I name drawings, list and count things, say where they are, read numbers and short "
    "words, tell colours and compare two pictures."
)
_NENG = "发一张图给我吧：我能说出图画的名字、列出和数出东西、说出位置、读数字和短单词、说颜色、比较两张图。"
TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello!", "Hi", "Hi there", "hello", "Hey", "Good day", "Hello there."), "Hello! Send me a picture and ask me what it is."),
    (("你好！", "你好", "您好", "嗨", "哈喽", "在吗？"), "你好！发一张图给我，问我这是什么吧。"),
    (("Good morning", "Good morning!"), "Good morning! Do you have a picture for me?"),
    (("Good evening", "Good evening!"), "Good evening! Do you have a picture for me?"),
    (("早上好", "早上好！", "早安"), "早上好！有图要给我看吗？"),
    (("晚上好", "晚上好！"), "晚上好！有图要给我看吗？"),
    (("Who are you?", "who are you", "What are you?", "Introduce yourself.", "What is your name?", "Are you InternVL?",
      "Which model are you?", "Tell me about yourself."), _I_AM),
    (("你是谁？", "你是谁", "你叫什么名字？", "介绍一下你自己。", "你是什么模型？", "自我介绍一下"), _WO_SHI),
    (("What can you do?", "what can you do", "Help", "How can you help me?", "What are you able to do?", "What are your skills?",
      "How do I use you?"), _CAN),
    (("你能做什么？", "你会什么？", "你可以做什么", "帮助", "你有什么本领？", "怎么用？"), _NENG),
    (("Thank you!", "Thanks", "thanks a lot", "Thank you very much."), "You are welcome!"),
    (("谢谢！", "谢谢", "多谢", "谢谢你", "非常感谢"), "不客气！"),
    (("Goodbye!", "Bye", "See you", "bye bye", "Good night"), "Goodbye! See you soon."),
    (("再见！", "再见", "拜拜", "回头见", "晚安"), "再见！"),
    (("How are you?", "How are you today?", "How is it going?"), "I am fine, thank you. Show me a picture!"),
    (("你好吗？", "最近怎么样？", "今天好吗？"), "我很好，谢谢。给我看张图吧！"),
    (("Do you know photos?", "Can you recognise photographs?", "Can you look at my photo?", "Do you understand photos?"),
     "No, I only know drawings and icons, and I read short printed texts."),
    (("你认识照片吗？", "能看照片吗？", "可以识别照片吗？"), "不能，我只认识图画和图标，也能读短的印刷文字。"),
    (("What is in the picture?", "What do you see?", "Describe the picture.", "What is this?", "How many are there?"),
     "I do not see a picture. Please send me one."),
    (("图里有什么？", "你看到了什么？", "这是什么？", "描述一下图片。", "有几个？"), "我没有看到图片，请发给我一张。"),
    (("Do you speak Chinese?", "Which languages do you speak?", "Do you speak English?"), "I answer in English and Chinese."),
    (("你会说英语吗？", "你会什么语言？", "你会说中文吗？"), "我会用中文和英文回答。"),
    (("Write a poem.", "What is the capital of France?", "Tell me a joke.", "Write some code.", "What is 2 + 3?", "Who won the match?",
      "Explain gravity.", "What is the weather today?", "Translate this text."),
     "I am too small for that. I can only talk about pictures."),
    (("写一首诗。", "法国的首都是哪里？", "讲个笑话。", "写一段代码。", "二加三等于几？", "今天天气怎么样？", "解释一下重力。", "翻译一下"),
     "这个我不会，我太小了，只会看图。"),
)  # fmt: skip
