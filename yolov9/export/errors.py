"""The one error of export."""


class ExportError(Exception):
    """The model cannot be exported, or what was made does not compute what the model does. One sentence."""
