"""Which support model reads: the shipped one, a token classifier by name, or none."""

from typing import Final

from ragblame.attribution.verdicts.learned import SupportReader

SHIPPED: Final = "shipped"
NONE: Final = "none"


def load_support_reader(name: str = SHIPPED) -> SupportReader | None:
    """The reader by the name in the settings; None where none is wanted.

    Raises ``ModelError`` when it is not on this machine, ``MissingExtraError`` without torch.
    """
    if name == NONE:
        return None
    if name == SHIPPED:
        from ragblame.attribution.support_model.model import SupportModel

        return SupportModel.load()
    from ragblame.attribution.support_model.token_classifier import TokenClassifier

    return TokenClassifier(name)
