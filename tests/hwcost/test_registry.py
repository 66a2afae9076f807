import pytest

from hwcost import registry


def test_ours_come_from_the_table_and_the_users_are_imported():
    assert registry.lookup("number", "one", {"one": 1}) == 1
    assert registry.lookup("number", "math:pi", {"one": 1}) == pytest.approx(3.14159, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "unknown number 'two': expected one of one, three, or your own as package.module:function"),
        ("math:tau2", "number 'math:tau2': module 'math' has no attribute 'tau2'"),
        (":x", "number ':x': Empty module name"),
        (".a:b", "number '.a:b': the 'package' argument is required"),
        ("no_such_module:x", "number 'no_such_module:x': No module named 'no_such_module'"),
    ],
)
def test_what_does_not_exist_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        registry.lookup("number", name, {"one": 1, "three": 3})


@pytest.mark.parametrize("name", ["os:getcwd", "os:sep", "math:hypot", "fractions:Fraction"])
def test_what_is_no_function_of_the_arguments_is_refused(name):
    assert registry.lookup_function("sum", "own", {"own": sum}, ("a",)) is sum
    assert registry.lookup_function("sum", "statistics:mean", {}, ("data",)).__name__ == "mean"
    with pytest.raises(ValueError, match=rf"sum '{name}': expected a function of \(a, b, c\), got (str|another one)"):
        registry.lookup_function("sum", name, {"own": sum}, ("a", "b", "c"))
