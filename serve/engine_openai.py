"""vLLM's own OpenAI chat handler around our engine proxy: bodies in, replies or stream lines out.

Only this handler is used of vLLM's server, and only with parameters on the allow-list of `serve.schemas`; its routes are never
mounted, so none has to be closed.
"""

from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import State
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import GenerationError, VLLMClientError
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.exceptions import EngineDeadError

from attune.config import Config
from attune.errors import RequestError, Unavailable
from serve.engine import SERVED_NAME
from serve.engine_proxy import EngineProxy


class Chat:
    """Chat completions as OpenAI specifies them, by vLLM's code."""

    def __init__(self, state: State, proxy: EngineProxy) -> None:
        self.handler, self.proxy = state.openai_serving_chat, proxy

    @classmethod
    async def open(cls, config: Config, proxy: EngineProxy) -> "Chat":
        """Set up vLLM's handlers for the configured model."""
        argv = [
            "--model",
            config.model_folder,
            "--served-model-name",
            SERVED_NAME,
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            config.serve.tool_call_parser,
        ]
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
        state = State()
        await init_app_state(proxy, state, args, await proxy.engine.inner.get_supported_tasks())
        return cls(state, proxy)

    async def complete(self, body: dict[str, Any]) -> dict[str, Any] | AsyncIterator[str]:
        """Return the reply's body, or the stream's lines; raises `RequestError` for what vLLM refuses."""
        try:
            request = ChatCompletionRequest.model_validate(body)
            result = await self.handler.create_chat_completion(request, None)
        except EngineDeadError as error:
            raise Unavailable("The engine is being restarted.") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # vLLM's own wrappers show up in brackets
            raise RequestError(f"{where}: {first['msg']}", param=where or None) from error
        except GenerationError as error:
            if "response_format" not in body and "tools" not in body:
                raise
            raise RequestError("The engine cannot follow this response_format or these tools.", param="response_format") from error
        except VLLMClientError as error:
            raise RequestError(str(error.args[0] if error.args else error), param=getattr(error, "parameter", None)) from error
        except (ValueError, TypeError, NotImplementedError, OverflowError) as error:
            raise RequestError(str(error)) from error
        if isinstance(result, ErrorResponse):
            raise RequestError(result.error.message, status=int(result.error.code), param=result.error.param)
        if hasattr(result, "model_dump"):
            return dict(result.model_dump())
        return result
