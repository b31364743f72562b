"""What MkDocs does to every page of the site, besides what its plugins do."""

import re
from typing import Any


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Make the links of a notebook, which lead to Markdown as on a disk, lead to pages.

    Its headings are made as those of other pages: a link to each, which the search leaves out.
    """
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = re.sub(r'href="(\.\./[\w/]+)\.md(#[\w-]+)?"', r'href="\1.html\2"', html)
    return html.replace('class="anchor-link"', 'class="headerlink"')
