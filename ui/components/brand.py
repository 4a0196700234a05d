"""The mark and the word mark, drawn here so that no page ever fetches an icon from elsewhere."""

from typing import Final

_LINES: Final = (
    '<rect width="32" height="32" rx="7" fill="#2f5bd7"/>'
    '<rect x="7" y="8" width="18" height="3.4" rx="1.7" fill="#fff"/>'
    '<rect x="7" y="14.3" width="10" height="3.4" rx="1.7" fill="#ffb27a"/>'
    '<rect x="18.6" y="14.3" width="6.4" height="3.4" rx="1.7" fill="#fff"/>'
    '<rect x="7" y="20.6" width="14" height="3.4" rx="1.7" fill="#fff"/>'
)
_WORD: Final = (
    '<text x="42" y="22.5" font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif" '
    'font-size="20" font-weight="650" letter-spacing="-0.4" fill="#5b7fe8">ragblame</text>'
)
MARK: Final = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{_LINES}</svg>'
LOGO: Final = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 150 32">{_LINES}{_WORD}</svg>'
