"""The OpenAPI description of `POST /restore`, which parses its request itself."""

from __future__ import annotations

from typing import Any

from pipeline.serving.request import RestoreOptions

ABOUT = (
    "Blind super-resolution: a photograph's blur kernel is estimated, and the photograph made sharp and larger. "
    "Whatever is wrong is answered by one line of JSON, its key is error."
)
_EVENTS = (
    "a stream of events with JSON: queue (ahead), step (stage, done, total, share, seconds_left), with pictures window "
    "(left, top, width, height, image), and as the last one result, which is the JSON, or error"
)
_IMAGE = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, TIFF or BMP; 8 or 16 bit"}


def _parameters() -> list[dict[str, Any]]:
    properties = RestoreOptions.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "description": schema.get("description", ""),
            "schema": {
                key: value
                for key, value in schema.items()
                if key not in {"title", "description"} and (key, value) != ("default", None)
            },
        }
        for name, schema in properties.items()
    ]


def _error(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {"description": description, "content": {"application/json": {"schema": schema}}, "headers": headers or {}}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


RESTORE: dict[str, Any] = {
    "parameters": _parameters(),
    "requestBody": {
        "required": True,
        "description": "the image as the body itself, or as a file in a form whose other fields are the parameters",
        "content": {
            "image/*": {"schema": _IMAGE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": _IMAGE, **RestoreOptions.model_json_schema()["properties"]},
                }
            },
        },
    },
    "responses": {
        "200": {
            "description": "the restored image as PNG, of the input's depth and channels; or JSON with image and "
            "kernel_png as base64, kernel as rows of numbers, and what the headers say. The same image with that "
            "kernel and sigma and another strength costs no second estimate. To a request that accepts "
            f"text/event-stream it is {_EVENTS}",
            "content": {
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}},
            },
            "headers": {
                "X-Width": _header("columns of the restored image"),
                "X-Height": _header("rows of the restored image"),
                "X-Scale": _header("factor by which it was enlarged"),
                "X-Kernel": _header("the kernel: a .npy file (k, k) float32, in base64"),
                "X-Sigma": _header("noise level, estimated or given, [0, 1] scale"),
                "X-Strength": _header("how much of the blur was undone, 0 to 1"),
                "X-Trust": _header("share of the restoration in the image, the rest is bicubic; absent if not judged"),
                "X-Residual": _header("RMS of what the restored image leaves unexplained of the input, [0, 1] scale"),
                "X-Kernel-Round": _header("the round whose kernel the guard let stand; 0 is the initial kernel"),
                "X-Kernel-Spread": _header(
                    "mean distance between the initial kernels of the chosen place and of others, 0 to 2; absent if "
                    "there was one place, or the kernel was given"
                ),
                "X-Windows": _header("number of windows in which the image was restored"),
                "X-Warnings": _header("what speaks against one uniform blur; absent if nothing does"),
                "X-Model": _header("the model version that restored it"),
                "X-Weights-Sha256": _header("digest of its weights"),
                "X-Precision": _header("number format of its convolutions, float32 or bf16"),
                "Server-Timing": _header("milliseconds of decode, estimate, restore, encode"),
            },
        },
        "400": _error("not an image that can be restored, or a wrong parameter"),
        "408": _error("the request did not arrive in time, or too slowly"),
        "413": _error("more bytes or pixels than the server takes"),
        "429": _error("every place is taken, or too many transfers", {"Retry-After": _header("seconds")}),
        "503": _error("out of memory, or the process that restored died", {"Retry-After": _header("seconds")}),
        "504": _error("not done within the server's time limit"),
    },
}
