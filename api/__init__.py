"""The three stages as functions: what the commands call, and what a notebook calls.

    import compal
    compal.extract("shapes-vit", "shapes", limit=500)
    run = compal.fit("tflocal", "shapes-vit", "shapes")
    rows = compal.evaluate("shapes", heads=["cosine"], runs=[run.run_dir.name], backbone="shapes-vit")

Everything lies in the workspace (`workspace.Workspace.find`). Progress goes to callbacks; nothing is printed.
"""

from ..pipeline.naming import dataset_name as dataset_name
from ..pipeline.naming import default_splits as default_splits
from ..sweep_scores import patch as patch
from .evaluation import Entry as Entry
from .evaluation import checkpoint as checkpoint
from .evaluation import evaluate as evaluate
from .evaluation import scorers as scorers
from .extraction import extract as extract
from .extraction import extract_benchmark as extract_benchmark
from .extraction import item_keys as item_keys
from .extraction import preview as preview
from .fitting import fit as fit
from .stored import open_store as open_store
from .stored import store_of as store_of
