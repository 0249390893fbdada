"""What the site takes from the repository: help texts of the commands, and pictures in `results/`."""

import argparse
import html
import json
import os
import re
import tomllib
from importlib import import_module
from pathlib import Path

from mkdocs.structure.files import File

from aeic_lightning.cli import COMMANDS

ROOT = Path(__file__).parents[1]
RESULTS = re.compile(r"results/[\w/]+/README\.md")
REPORT = "index.html"
"""The page of a sweep beside a page of results; the site links it below the title."""
OWN_PICTURES = re.compile(r"\]\(([\w-]+\.(?:png|webp|svg))\)")
"""Pictures beside a page."""
PICTURES = re.compile(r"\]\(\.\./(results/[\w/.-]+)\)")


URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]


def on_config(config):
    """The addresses of the site and of the repository."""
    config.site_url, config.repo_url = URLS["Documentation"], URLS["Repository"]
    config.repo_name = "/".join(URLS["Repository"].split("/")[-2:])
    return config


def on_files(files, config):
    """Add the pages of results that the menu names, what they link, and the pictures that pages show."""
    for path in RESULTS.findall(json.dumps(config.nav)):
        # Beside its folder: there `README.md` would be index.html, which a report may be.
        where = {"dest_uri": f"{Path(path).parent}.html"}
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls, **where))
        for name in [REPORT, *OWN_PICTURES.findall((ROOT / path).read_text())]:
            shown = f"{Path(path).parent}/{name}"
            if (ROOT / shown).is_file() and files.get_file_from_path(shown) is None:
                files.append(File(shown, str(ROOT), config.site_dir, config.use_directory_urls))
    for page in list(files.documentation_pages()):
        for path in PICTURES.findall(Path(page.abs_src_path).read_text()):
            if files.get_file_from_path(path) is None:
                files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put the help texts in, and link pictures where the site has them."""
    markdown = PICTURES.sub(r"](\1)", markdown)
    for kind, written in (("Repository", "https://github.com/OWNER/"), ("Documentation", "https://OWNER.github.io/")):
        markdown = markdown.replace(f"{written}aeic_lightning", URLS[kind].rstrip("/"))
    if RESULTS.fullmatch(page.file.src_uri):
        folder = Path(page.file.src_uri).parent
        markdown = markdown.replace("](../../docs/", "](../../")
        if files.get_file_from_path(f"{folder}/{REPORT}"):
            title, _, rest = markdown.partition("\n")
            markdown = f"{title}\n\n[Interactive page: curves, claims, pictures]({REPORT})\n\n{rest}"
    if "<!-- commands -->" in markdown:
        os.environ["COLUMNS"] = "100"
        markdown = markdown.replace("<!-- commands -->", "\n".join(map(_help, COMMANDS)))
    return markdown


def on_post_page(output, page, config):
    """What a link to the page shows elsewhere."""
    card = {
        "og:title": page.title if page.is_homepage is False else config.site_name,
        "og:description": config.site_description,
        "og:type": "website",
        "og:url": page.canonical_url,
        "og:image": f"{config.site_url}gallery/card.jpg",
    }
    tags = [f'<meta property="{name}" content="{html.escape(str(value))}">' for name, value in card.items()]
    tags.append('<meta name="twitter:card" content="summary_large_image">')
    return output.replace("</head>", "\n".join([*tags, "</head>"]), 1)


def _help(name: str) -> str:
    module, text = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"aeic-lightning {name}", description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    import_module(f"aeic_lightning.cli.commands.{module}").add_arguments(parser)
    return f"## {name}\n\n```text\n{parser.format_help()}```\n"
