def report(runs, path):
    print(len(runs))
