"""Results as one self-contained HTML page; extra "report"."""

from teleojax.report.page._comparison import comparison_page as comparison_page
from teleojax.report.page._render import require_page as require_page
from teleojax.report.page._report import report_page as report_page
