"""The paper's tables and figures, measured: what each needs is searched, trained, compared and drawn.

experiments   what can be reproduced, and which trainings each needs
methods       the models of Table 2 and what is searched of each
scales        how large: `full` is the paper's, `small` is for two CPU cores, `tiny` for tests
published     the paper's own figures
chains        what is to be trained next, told from the results folder alone
executors     where it is trained: in this process, or on Ray
results, markdown, plots   what was found
price         what it would take
reproduce     all of it, in order
"""
