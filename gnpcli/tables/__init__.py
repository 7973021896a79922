"""Tables: experiments written as data (`spec`), made of ordinary runs (`cells`, `runner`), and told
with evidence (`statistics`, `results`, `report`). Importing this package imports nothing."""
