"""The tool `browser`: search, open and find over the pages of a backend, as gpt-oss was trained."""

from ossia.tools.browser.browser import Browser
from ossia.tools.browser.folder import Folder
from ossia.tools.browser.page import Backend, Page

__all__ = ["Backend", "Browser", "Folder", "Page"]
