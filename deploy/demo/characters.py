"""The characters of the demo: the first kanji a Japanese school teaches, in the order of the official table.

The table is MEXT's list of kanji by school year (gakunen-betsu kanji haitōhyō), part of the jōyō kanji. Within a year
it runs by reading. A class label is the position in `CLASSES`; this file says nothing about fonts or pixels.
"""

from __future__ import annotations

FIRST_YEAR = (
    "一右雨円王音下火花貝学気九休玉金空月犬見五口校左三山子四糸字耳七車手十出女小上森"
    "人水正生青夕石赤千川先早草足村大男竹中虫町天田土二日入年白八百文木本名目立力林六"
)

SECOND_YEAR = (
    "引羽雲園遠何科夏家歌画回会海絵外角楽活間丸岩顔汽記帰弓牛魚京強教近兄形計元言原戸"
    "古午後語工公広交光考行高黄合谷国黒今才細作算止市矢姉思紙寺自時室社弱首秋週春書少"
    "場色食心新親図数西声星晴切雪船線前組走多太体台地池知茶昼長鳥朝直通弟店点電刀冬当"
    "東答頭同道読内南肉馬売買麦半番父風分聞米歩母方北毎妹万明鳴毛門夜野友用曜来里理話"
)

SECOND_YEAR_USED = 128
"""How many of the second year's 160 take part: with all of them two fonts of inputs and the weights pass 8 MB."""

CLASSES: tuple[str, ...] = tuple(FIRST_YEAR + SECOND_YEAR[:SECOND_YEAR_USED])
"""208 kanji; the index is the label."""
