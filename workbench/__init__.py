"""What a participant needs at home, beside the submission. Each of these is a command, `python -m workbench.NAME`.

    demo            data, notebook with the real client, both predicted files, a report
    adopt           any Perturb-seq .h5ad becomes a data folder, on which all of this works
    predict         cells of knock-outs that were never measured, as an AnnData file
    simulate        demo data in the platform's layout, with a known answer
    compare         a prediction beside the baselines and real cells
    cross_validate  leave perturbations out: every baseline, each table or screen alone and left out, your own class
    validate        the platform's rules for the predicted files and the method description
    submission      the folder to push from
    bundle          one notebook that carries everything, for Colab, Kaggle and the one-file upload
    sources         public gene sets, graphs and screens: fetched, made small, credited
    hub             the hub on this machine that the real crunch client talks to
    results, bench  the pages RESULTS.md and BENCHMARKS.md

The environment variable CRUNCH=2 makes all of them work on crunch 2, in the folder `crunch-2`; `combine` has the rules
of its simulated doubles, `notebooks` what differs in its notebook.

What they share lies in `adoption/` (labels, values, files), `evaluation/` (methods, folds, intervals), `results/` (the
benchmarks of the page) and `platform/` (the runner that the client executes).
"""
