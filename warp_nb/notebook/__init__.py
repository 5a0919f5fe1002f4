"""What notebooks show, in Russian: numbers, tables, figures, conclusions. All of it comes from measurements."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "check_words": ["headline"],
        "compared_runs": ["compare"],
        "experiment_banner": ["banner"],
        "experiment_page": [
            "block_angles",
            "conclusion",
            "curves",
            "limits",
            "outcome",
            "reading",
            "reproducible",
            "rewards",
            "save",
        ],
        "live_plot": ["LivePlot"],
        "tables": ["checks_table", "geometry_table", "results_table", "samples_table", "settings_table", "table"],
    },
)
