"""What people ask of a coordinator that serves many: jobs, lists, and setting things right; over gRPC or on a store.

api.py      the calls, as functions of records        order.py    a request as a job carries it
desk.py     the calls on a store, with or without a coordinator     client.py, servicer.py, convert.py    over gRPC
jobs.py     running what was asked                    remote.py   `lutbuilder collect --coordinator`
serve.py    `lutbuilder serve`                        metrics.py  what it shows to Prometheus
"""
