"""The report of a study: one self-contained page, and its pictures as files."""

from darec_search.report.page import write_report
from darec_search.report.pictures import architecture_picture

__all__ = ["architecture_picture", "write_report"]
