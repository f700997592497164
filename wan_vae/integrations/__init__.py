"""This package inside other libraries; each module is imported by its name and needs that library."""
