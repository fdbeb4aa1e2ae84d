"""The stream plugins will live here (ip-restriction, limit-conn, mqtt-proxy, traffic-split, prometheus, syslog).

Until then `config/compile.py` refuses a route that names one: a restriction that is silently not enforced would be worse
than a configuration that does not load.
"""
