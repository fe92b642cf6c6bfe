"""kpis: key figures per machine and hour."""
