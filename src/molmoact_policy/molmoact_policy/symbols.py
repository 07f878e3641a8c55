"""The 256 action symbols: bin 0 to 255, the last 256 ordinary tokens of the Qwen2 vocabulary in reverse rank order.

Each is the byte-level BPE spelling of a token, written as ordinary text and tokenised again like any other text. The
released parser looks symbols up in the whole vocabulary, so it is here, too, for whoever has to parse as it does.

qwen2_vocabulary.txt.xz holds the spellings of all ordinary tokens, one a line, in rank order: qwen.tiktoken of the PyPI
package dashscope 2.0.2 (Apache-2.0). `python src/molmoact_policy/test/qwen.py` writes it again.
"""

import lzma
from functools import cache
from pathlib import Path
from typing import Final

VOCABULARY_FILE: Final = Path(__file__).with_name("qwen2_vocabulary.txt.xz")


def is_ordinary_token(text: str) -> bool:
    """Whether `text` spells one of Qwen2's 151,643 ordinary tokens, as the symbols do; added tokens are none."""
    return text in _ordinary_tokens()


@cache
def _ordinary_tokens() -> frozenset[str]:
    """Read at the first question: a tenth of a second and 16 MB that a well-formed reply never needs."""
    with lzma.open(VOCABULARY_FILE, "rt", encoding="utf-8") as lines:
        return frozenset(line.rstrip("\n") for line in lines)


# fmt: off
SYMBOLS: Final[tuple[str, ...]] = (
    "â½Ĺ", "âºŁ", "âį¨", "áķ·", "ï¨Ĭ", "ãĩ½", "ãĩº", "â½º", "âĴł", "ãĬ¥", "â¼Ń", "â°¡", "â°ł", "â°Ł", "â°ĳ", "â°Ĳ",
    "â°İ", "â°į", "â°Ĥ", "âĴ¡", "âĴŁ", "âĢ´", "âĶ²", "ðĵı§", "ï¨·", "ãĪ¼", "âŀ¶", "âĸ¤", "âĩŀ", "âĨ·", "âĨ¤", "á¥¤",
    "á¥Ķ", "áħ£", "àºĤ", "ï±Ĭ", "ê¦Ķ", "ãī«", "ãħĸ", "ãĦ§", "ãĦĵ", "ãĦį", "âŁ°", "âĿ«", "âĿª", "âĽı", "âĽĩ", "âķĬ",
    "âĶ½", "á¸Ĭ", "á¤Ĭ", "áĽĲ", "áĽħ", "áļĮ", "áĻ³", "àłĮ", "ÆĪ", "ðŁħĵ", "ðŁħħ", "ðĿļı", "ðĿļĦ", "ðĿĻ¿", "ðĿĻ½",
    "ðĿĻ¼", "ðĿĻº", "ðĿĻ¸", "ðĿĻ°", "ðĿĻ®", "ðĿĺļ", "ðĿĺĲ", "ðĿĺı", "ðĿĸĸ", "ðĿķ±", "ðĿķ¡", "ðĿķį", "ðĿĶĵ", "ðĿĵ¾",
    "ðĿĵ¹", "ðĿĵ¬", "ðĿĵķ", "ðĿĳ³", "ðĸ¥¨", "ðĸ¥", "ðĲ±ħ", "ðĲŃĬ", "ïŃ²", "ï¥±", "ï¥ł", "ï¤¦", "íĵ»", "íĵ¶", "íĵ®",
    "íĵ¬", "íĭį", "ì¼ĩ", "ìĨĬ", "ë¡¼", "ê³Ĥ", "ê²´", "ê²Ļ", "ä¶µ", "ãĪª", "â²¢", "âļ£", "âĺµ", "âĶŀ", "á¸»", "á¸ĥ",
    "á¨ģ", "áłĦ", "áĶĬ", "áĶħ", "áĴĮ", "áĲ§", "áĮĶ", "áĮĦ", "áĭ©", "áĬĴ", "áī¨", "áģ¼", "áĢı", "à²Ł", "à°µ", "à°³",
    "à¬ī", "à¥±", "à¤ĳ", "Ý¥", "Ýĵ", "Ôĳ", "ÔĪ", "Ê¶", "È²", "ðŁıĩ", "ðŁħ¢", "ðĿļģ", "ðĿĻľ", "ðĿĵ°", "ðĿĵŀ", "ðĲ°¼",
    "ðĲŃĵ", "ðĲ¤Ķ", "ï¨Ĥ", "ï§©", "ï¦ĥ", "ï¤Ĩ", "ï¤ħ", "íĽľ", "íķ±", "íĵŃ", "íĵĸ", "íĥĻ", "íģ»", "ì»ģ", "ì³ħ", "ìľ¾",
    "ìĽ¢", "ë±Ĳ", "ë±ĭ", "ë§ł", "ë¤Ĥ", "ëĸ°", "â¤¦", "â¡¢", "âļĹ", "âļĤ", "âĻĻ", "á¿ļ", "á¿Ĳ", "á¾Ķ", "á¶ı", "á©ĭ",
    "á¨¸", "áł¬", "áłĤ", "áĶŃ", "áĮ½", "áĮĥ", "áīĲ", "áĪ¾", "áĪ¨", "áĪĬ", "áĨº", "à½ħ", "à´´", "Õĥ", "Êĵ", "Éĺ",
    "ðŁķĭ", "ðŁĨĴ", "ðŁħ±", "ï®ı", "íķ®", "íĬŃ", "ì¥ī", "ìł°", "ìŁĻ", "ìĿ¿", "ìĿ©", "ìĹ¤", "ìı±", "ìĭ²", "ìī¡", "ìĦĲ",
    "ë¼Ŀ", "ë»ħ", "ë¯ĳ", "ë¡ĳ", "ëĹį", "ëĶī", "ê¸ĳ", "êĻĭ", "ã³¬", "âĽ¤", "âļ§", "âĦ¬", "á½Ŀ", "á¼®", "áºĢ", "á¸°",
    "á¡Į", "Úİ", "Ñ¨", "ðŁĹģ", "ðŁĸ¶", "ðŁĸĳ", "ðŁĸĩ", "ðŁķ³", "ðŁķ¢", "ðŁķł", "ðŁķŀ", "ðŁķĿ", "ðŁķľ", "ðŁķļ", "ðŁķĸ",
    "ðŁĶ©", "ðŁĶ¤", "ðŁĶ¢", "ðŁĶĵ", "ðŁĶĩ", "ðŁĶĥ", "ðŁĶĤ", "ðŁĶĢ", "ðŁĵ¼", "ðŁĵª", "ðŁĵŁ", "ðŁĴº", "ðŁĴ¹", "ðŁĳĿ",
    "ðŁĲĢ", "ðŁı¯", "ðŁı©", "ðŁıĴ", "ðŁıı", "ðŁİ¿", "ðŁİĳ",
)
