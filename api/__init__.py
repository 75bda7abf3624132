"""The three stages as functions: what the commands call, and what a notebook calls.

    import compal
    compal.extract("shapes-vit", "shapes", limit=500)
    run = compal.fit("tflocal-shapes", settings={"optim.steps": 100})
    rows = compal.evaluate("shapes", runs=run, limit=50, extract_missing=True)
    compal.report(rows).html("report.html")

Everything lies in the workspace (`workspace.Workspace.find`). What a call does not name is what the workspace used
last. Progress goes to callbacks; nothing is printed. Errors are `errors.CompalError`: what, where, the cure.
"""

from ..pipeline.naming import dataset_name as dataset_name
from ..pipeline.naming import default_splits as default_splits
from ..sweep_scores import patch as patch
from .evaluation import Entry as Entry
from .evaluation import checkpoint as checkpoint
from .evaluation import evaluate as evaluate
from .evaluation import open_scorer as open_scorer
from .evaluation import scorers as scorers
from .extraction import extract as extract
from .extraction import extract_benchmark as extract_benchmark
from .extraction import item_keys as item_keys
from .extraction import preview as preview
from .fitting import fit as fit
from .reporting import Comparisons as Comparisons
from .reporting import Report as Report
from .reporting import report as report
from .reporting import saved_rows as saved_rows
from .stored import open_store as open_store
from .stored import store_of as store_of
