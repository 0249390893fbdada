"""Templates of HTML pages."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def templates(package: str) -> Environment:
    """The templates in a package's folder. All that is not their own text is escaped; a name without a value fails."""
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
