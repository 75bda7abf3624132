"""A sheet as LaTeX, for booktabs."""

from __future__ import annotations

from .sheets import Cell, Sheet

LATEX = {
    "\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "α": r"$\alpha$", "×": r"$\times$", "→": r"$\to$", "†": r"$^\dagger$",
}  # fmt: skip
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def latex(sheet: Sheet) -> str:
    """A booktabs table, the best of a column bold, intervals small; notes and sources are comments before it."""

    def cell(given: Cell, label: bool) -> str:
        figure, bracket, rest = given.text.partition(" [") if not label else (given.text, "", "")
        text = rf"\textbf{{{_tex(figure)}}}" if given.best else _tex(figure)
        return rf"{text} {{\scriptsize [{_tex(rest)}}}" if bracket else text

    columns = "l" * sheet.labels + "r" * (len(sheet.header) - sheet.labels)
    body = [
        " & ".join(cell(given, number < sheet.labels) for number, given in enumerate(cells)) + r" \\"
        for cells in sheet.body
    ]
    notes = " ".join(sheet.notes).replace("* best", "bold: best")
    return "\n".join(
        [
            *(f"% {line}" for line in f"{sheet.title}. {notes}".splitlines()),
            *(f"% {source}" for source in sheet.sources),
            "% needs booktabs",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_tex(name) for name in sheet.header) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
