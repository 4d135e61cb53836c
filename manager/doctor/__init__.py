"""`livesnap doctor`: database, storage and live machines compared, what differs, and the plan for each difference.

facts.py       what was seen and what is on record                         pure
view.py        both put together: who uses which file, what owns what      pure
findings.py    what a difference is called, and what it means              pure
machines.py, lies.py, storage.py, rebuild.py    the comparison             pure
diagnosis.py   all of it, in the order of importance                       pure
examine.py     asks hosts and SPMs, reads the database
repair.py      turns the plans that are provably safe into jobs
"""
