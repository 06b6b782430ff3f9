"""protobuf messages as the JSON of Triton's HTTP server."""

from typing import Any


def plain(message: Any) -> dict[str, Any]:
    """A protobuf message as Triton's HTTP server would write it in JSON, unset scalars included.

    protobuf's own conversion writes 64-bit integers as text, so a dimension would be -1 over HTTP and "-1" here.
    """
    return {
        field.name: _plain_field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain_field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _plain_value(entry, one) for key, one in value.items()}
    if hasattr(value, "append"):  # protobuf's repeated containers
        return [_plain_value(field, one) for one in value]
    return _plain_value(field, value)


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value
