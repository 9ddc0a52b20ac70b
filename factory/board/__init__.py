"""The page in the browser: the same keys, plans, runs and verbs as the command line, none of them said twice.

What is shown is data first: `fields` (a form, from the schema and the groups), `line` (a form's state, which is a
command line), `file` (the same as YAML), `planned` (its plan or its refusals), `runs` (what was and is trained), `said`
(three languages). None of these knows Gradio. `page` and `tabs/` draw them, `shown` is their HTML; `server` opens it.
"""
