"""What scripts/compare.py, compare_report.py and compare_page.py are made of, each file using only those above it:

runs:     grid      a grid of configs/compare/: its runs and their configurations
          program   files, GPUs, the program that trains
          check     mistakes that are found before anything runs
          state     what of a grid has run, is running, waits, and how long it will take
          run       one run: training, evaluation, result.json
results:  stats     resampled books, t over seeds, Holm's correction: when a difference counts
          tables    groups of results, losses
          costs     speed, memory, wall-clock, probes, provenance
          pairs     pairs of types; what can be memory
          goals     what was to be shown
          figures   what a figure shows
          plot      how it is drawn
pages:    page_study, page_tables, page_parts   tables in a hand-written page"""
