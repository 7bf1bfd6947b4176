"""How well two sets of features agree on which images are alike: CKNNA, SE-CKNNA and their siblings.

clean images -> transformed images -> features of every model and condition -> scores -> cross-layer matrix, report
"""
