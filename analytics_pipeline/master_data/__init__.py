"""What people maintain beside the messages: its tables, and what a file of them must fulfil. Pure: no SQL, no clock.

``spec``                what a table of master data is
``measurements``        limits, calibration, units: about series
``production``          factories, machines, shifts, products, states, stops, targets: about machines
``catalog``             all tables
``rows``                rows as text: files in, typed values out, and back
``checks``              what holds between rows
``units``               factors from a unit to another
"""
