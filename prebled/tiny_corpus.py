"""What the tiny model's tokenizer is trained on: common words by falling frequency, and bits of JSON, chat and code.

A word list with falling weights instead of a text: it is small, needs nothing from the machine, and gives real English
and JSON about three characters per token with a vocabulary of 2,048. Changing it changes every tiny model's token ids.
"""

from __future__ import annotations

from collections.abc import Iterator

_ENGLISH = """
the of and to a in is that for it as was with be by on not he i this are or his from at which but have an had they you
were their one all we can her has there been if more when will would who so no she other its may these what them than
some him time into only do such my new about out also two any up first could our then most see me should after said your
very between made many over like must people those both through how where just well because same each did good used
before being even work use make way man under long world much own years life great get know still last against now
little while such another within without state during here day right place found might year something around never
number part though old given give think again went back come old house water take off small every three set want need
less few end put does call called away asked thought left upon kind second case point fact hand eyes high head show far
group public order help try next line name city country school home side power course become half until form since find
look following important however based several using possible used different following result results following general
information between example system problem question answer user users data model service list value values type types
string object function description parameter parameters required optional property properties name tool subfunction
include includes included contain contains provide provides return returns request response search query retrieve get
all details detail specific given date time country code language number page limit default format image video movie
music song artist album game team player league match score season sport news article title content text word message
email address phone company product price market stock currency exchange rate weather forecast location latitude
longitude city region airport flight hotel travel restaurant food recipe ingredient health medical drug disease book
author library university student course test quiz account password token key access error status success failure true
false null none yes please could would like recommend suggest interested planning looking gather provide information
additionally furthermore also me some about popular available current latest recent daily weekly monthly annual history
historical event events category categories country countries state states id ids url link website web site domain ip
server network security check verify validate generate create update delete add remove insert send receive download
upload file files folder path size count total average minimum maximum sum rate percent percentage top best rating
review comment post share follow like channel subscribe playlist track stream live channel program television episode
series character actor director studio release version platform mobile device application app software hardware
computer machine learning training sample samples token tokens prompt cache memory process worker queue schedule batch
step block prefix tree node load cost policy decision request requests latency throughput capacity engine start stop run
running wait waiting finish final answer action thought observation task call remember always enough restart handle
subject matter person woman child children family mother father friend men women boy girl young early late morning night
evening week month hour minute second monday tuesday wednesday thursday friday saturday sunday january february march
april june july august september october november december north south east west left right center earth land sea river
mountain tree animal dog cat bird fish horse red blue green white black brown yellow light dark color colour body face
heart mind voice sound art story history science nature government law war peace political social economic national
international american english french german chinese business money trade industry development research study report
plan project team member party office room door window street road car train ship plane wall floor table chair bed
kitchen oven drawer cabinet shelf desk lamp towel soap plate cup knife bread apple egg open close turn clean heat cool
examine put take go look move walk stand sit read write speak talk tell hear listen feel seem believe understand
explain describe compare discuss consider develop increase reduce change keep bring begin began stopped happen
happened allow lead grow build built buy pay sell spend cut hold held win lose send sent meet met leave stay remain
expect appear serve die live love hate hope wish enjoy agree offer decide choose chosen accept refuse support protect
local common special major strong weak full empty hard soft easy difficult simple complex clear certain sure real
whole short tall wide deep free ready similar able likely less least better best worse worst bad happy sad
"""

_JSON = """
{"name": "get_user_for_api", "description": "This is the subfunction for tool \\"api\\", you can use this tool.The
description of this function is: \\"Get a list of all items by id.\\"", "parameters": {"type": "object", "properties":
{"query": {"type": "string", "description": "The search query", "example_value": "1"}, "limit": {"type": "integer",
"description": "", "default": 10}}, "required": ["query"], "optional": ["limit", "page"]}}, {'name': 'search_for_api',
'description': 'Search the api.', 'parameters': {'type': 'object', 'properties': {'country': {'type': 'string',
'description': 'Country code', 'example_value': 'US'}}, 'required': ['country'], 'optional': []}}, "return_type":
"give_answer", "final_answer": "I'm sorry, I don't know. It's not possible.", "enum": ["one", "two"], "status": true,
"error": null, "count": 0, "price": 19.99, "date": "2024-01-31", "url": "https://www.example.com/v1/items?id=123"}
"""

_CODE = """
def main(self, args: list[str]) -> int:
    for index, value in enumerate(values):
        if value is None or not isinstance(value, str):
            raise ValueError(f"bad value: {value!r}")
        result[index] = value.strip().lower()
    return len(result)

import os, sys, json
class Server(Base):
    def __init__(self, name=None): self.name = name
print("hello, world!\\n")
System: You are a helpful assistant. User: What is the answer? Assistant: The answer is 42.
Thought: I need to look. Action: search[query] Observation: You see a table 1, a drawer 2 and a cabinet 3.
"""

_TOP_WEIGHT = 4000  # times the first word is repeated; the n-th is repeated about 1/n as often


def training_texts() -> Iterator[str]:
    """The texts to train on, always the same ones in the same order."""
    words = list(dict.fromkeys(_ENGLISH.split()))
    for rank, word in enumerate(words):
        weight = 4 + _TOP_WEIGHT // (rank + 20)
        yield f" {word}" * weight
        yield f" {word.capitalize()}" * (1 + weight // 8)
        yield f'"{word}": "{word}_{words[rank - 1]}", ' * (1 + weight // 16)
    yield " ".join(_JSON.split()) * 12
    yield _CODE * 12
    yield from (f" {number}" for number in range(1000))
