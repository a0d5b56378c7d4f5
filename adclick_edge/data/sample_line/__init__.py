"""A made-up production line: three products, drawn anew for each picture, with exact defect masks.

``fabric`` is a texture, ``board`` an aligned assembly, ``flange`` a freely turned part. Pictures are drawn as height
fields under a lamp and passed through a camera model, so that good ones differ from each other as real ones do.
"""

from .contact_sheet import contact_sheet
from .frame import PRODUCTS, render_frame, render_noise_free
from .render import is_rendered, render_line

__all__ = ["PRODUCTS", "contact_sheet", "is_rendered", "render_frame", "render_line", "render_noise_free"]
