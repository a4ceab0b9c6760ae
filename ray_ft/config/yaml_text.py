"""YAML that nobody vouches for: plain values of a bounded number, each key once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from ray_ft.errors import ConfigError, first_line, shorten, show_value

MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH, MAX_DIGITS = 2**17, 10_000, 30, 40
# The others build dates, bytes and sets, which no JSON holds, or objects.
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
KEY_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of sections, or say why it cannot be read, parsed, or is no mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(
            f"a config file must be readable, got {shorten(str(path))}: {error.strerror}; check the path"
        ) from error
    except ValueError as error:  # no UTF-8, or no path
        raise ConfigError(f"a config file must be YAML, got {shorten(str(path))!r}: {first_line(error)}") from error
    content = parse_yaml(text, f"a config file must be YAML, got {path}")
    if not isinstance(content, dict):
        raise ConfigError(f"a config file must hold sections such as `data:`, got {path} with {type(content).__name__}")
    return content


def parse_yaml(text: str, rule: str) -> Any:
    """Parse a document of YAML; no code in it is run. Messages open with the rule that it should keep.

    Raises:
        ConfigError: It is not well-formed, has a key twice or a value that is not plain, or is larger than any config.
    """
    try:
        return build_content(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{rule}: {shorten(' '.join(str(error).split()))}") from error
    # A constructor raises what the conversion of a value raises, such as KeyError for `!!bool maybe`.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ConfigError(f"{rule}: {first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{rule}: it is nested too deeply") from error


def build_content(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it may have {MAX_CHARACTERS:,} characters at most")
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        return None
    check_node(node)
    return yaml.SafeLoader("").construct_document(node)


def check_node(top: Node) -> None:
    """Refuse what would not be plain or small: an alias counts as often as it is named, so that none multiplies."""
    waiting, n_values = [(top, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        n_values += 1
        where = f"in line {node.start_mark.line + 1}"
        if n_values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(
                f"it may have {MAX_VALUES:,} values and {MAX_DEPTH} levels at most, aliases written out, got more "
                f"{where}"
            )
        if node.tag not in PLAIN_TAGS:
            raise ValueError(f"a value must be a text, a number or true or false, got {node.tag} {where}; quote a text")
        if isinstance(node, ScalarNode) and node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise ValueError(f"a number may have {MAX_DIGITS} digits at most, got {len(node.value)} {where}")
        waiting += [(part, depth + 1) for part in list_parts(node, where)]


def list_parts(node: Node, where: str) -> Iterator[Node]:
    if isinstance(node, SequenceNode):
        yield from node.value
    elif isinstance(node, MappingNode):
        seen = set()
        for key, value in node.value:
            if key.tag not in KEY_TAGS:
                raise ValueError(f"a key must be a text, got {show_value(key.value)} {where}; quote it")
            if key.value in seen:
                raise ValueError(f"a key may stand once in its section, got {show_value(key.value)} twice {where}")
            seen.add(key.value)
            yield from (key, value)
