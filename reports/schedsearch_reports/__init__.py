"""Reports of what a search wrote: `report_data` computes, `render` writes one page. Knows no torch and no searcher."""

from schedsearch_reports._build import report_data
from schedsearch_reports._data import ReportData
from schedsearch_reports._page import render, write_report
from schedsearch_reports._stills import write_stills

__all__ = ["ReportData", "render", "report_data", "write_report", "write_stills"]
