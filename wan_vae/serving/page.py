"""The page for people: it takes a clip and shows the report of its reconstruction."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wan_vae.inference.budget import format_bytes
from wan_vae.report.page import source_of, style_and_script
from wan_vae.serving.limits import Limits

_FOLDER = Path(__file__).parent


def render_page(name: str, limits: Limits, *, token: bool) -> tuple[str, str]:
    """Return the page of a model of this name, and its Content-Security-Policy.

    Args:
        name: Of the model.
        limits: What the page says that the server takes.
        token: Whether the page asks for one.
    """
    report_css, report_script = style_and_script()
    css = report_css + (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined)
    text = environment.get_template("page.html").render(
        name=name,
        css=css,
        script=script,
        token=token,
        frames=limits.frames,
        megapixels=f"{limits.pixels / 1e6:.3g}",
        size=format_bytes(limits.body),
    )
    # The frame with the report keeps to the policy of the page that made it, so both may run their own code.
    policy = (
        "default-src 'none'; connect-src 'self'; frame-src blob:; img-src data: blob:;"
        f" style-src {source_of(css)} {source_of(report_css)};"
        f" script-src {source_of(script)} {source_of(report_script)};"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
