"""Tests of this package inside other libraries."""
