"""Text that would break what shows it: markup, ends of scripts, escape sequences, marks of direction, long lines."""

from __future__ import annotations

import re

HOSTILE = {
    "script": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><svg onload=window.hacked=3>",
    "ends": "</script></style></textarea></title></dialog> <!-- --> ]]> <![CDATA[ &amp; &lt; &#60;b&#62;",
    "comment": "<!--<script>",
    "template": '{{ 7 * 7 }} {% raw %} ${1+1} `x` \\"+alert(1)+\\" %s %(x)s [bold red]markup[/] :smile:',
    "terminal": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\x08\x08\x08 \rover \x9b31m \x7f \x9d0;t\x9c",
    "nul": "before\x00after",
    "direction": "abc \u202egpj.exe\u202c \u2067isolated\u2069 \u200f עברית \u061c العربية",
    "hidden": "zero\u200bwidth\u200djoined\ufeff so\u00adft \U000e0041\U000e0042 \u2060",
    "quotes": "\"double\" 'single' \\ back\\nslash ''; DROP TABLE examples; --",
    "lines": "one\ntwo\r\nthree\rfour\u2028five\u2029six\x85seven\teight\x0bnine\x0cten",
    "formula": '=HYPERLINK("http://localhost/","click")',
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(A1:A9)",
    "tab": "\t=1+1",
    "comma": ',;|","\n,',
    "wide": "漢字かな 🧑‍🚀 é é ﷽ Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "long": "x" * 9_990 + "<b>end</b>",
}

OBEYED = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What a terminal obeys, or what turns or hides text; a line feed ends a line."""
