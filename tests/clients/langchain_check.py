"""langchain-openai against `mlxr serve`: chat models and completion models, over TCP and over the Unix socket."""

import asyncio
import os

import httpx2
import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

URL = os.environ["MLXR_URL"]
SOCKET = os.environ["MLXR_SOCKET"]
MODEL = "mlxr-27m"
ASK = [SystemMessage("You tell stories."), HumanMessage("Tell me a story about a cat.")]


def model(kind, **more):
    settings = dict(model=MODEL, temperature=0, max_tokens=40, max_retries=0, api_key="none", base_url=f"{URL}/v1")
    return kind(**{**settings, **more})


def check_chat(chat):
    whole = chat.invoke(ASK)
    text = whole.content
    assert isinstance(whole, AIMessage) and len(text) > 20, whole
    usage = whole.usage_metadata
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > 40, usage
    assert whole.response_metadata["finish_reason"] in ("stop", "length"), whole
    chunks = list(chat.stream(ASK, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == text and len(chunks) > 10
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined += chunk
    again = joined.usage_metadata
    assert again["total_tokens"] == usage["total_tokens"], (again, usage)
    # The same prompt a second time: its full blocks are in the prefix cache.
    assert 0 < again["input_token_details"]["cache_read"] < again["input_tokens"], again
    stopped = chat.invoke(ASK, stop=["."])
    assert stopped.content == text.split(".")[0], stopped
    # What LangChain is for: a template in front of a model, several inputs at once.
    chain = ChatPromptTemplate.from_messages([("system", "You tell stories."), ("user", "{request}")]) | chat
    answers = chain.batch([{"request": ASK[1].content}] * 4)
    assert [answer.content for answer in answers] == [text] * 4
    return text


def check_completion(llm):
    text = llm.invoke("Once upon a time")
    assert len(text) > 20 and "".join(llm.stream("Once upon a time")) == text
    both = llm.generate(["Once upon a time", "The dog"])
    assert both.generations[0][0].text == text and len(both.generations) == 2
    assert both.llm_output["token_usage"]["completion_tokens"] <= 80, both


def check_embeddings():
    # It would fetch OpenAI's vocabulary to cut texts by itself.
    embeddings = OpenAIEmbeddings(
        model=MODEL, api_key="none", base_url=f"{URL}/v1", max_retries=0, check_embedding_ctx_length=False)
    texts = ["a cat", "a story about a dog"]
    found = embeddings.embed_documents(texts)
    assert len(found) == 2 and abs(sum(x * x for x in found[0]) - 1) < 1e-5
    assert embeddings.embed_query(texts[1]) == found[1]


def check_errors(chat):
    def refused(kind, call):
        try:
            call()
        except kind as error:
            return error
        raise AssertionError("not refused")

    # LangChain has a name of its own for a prompt that is too long.
    long = [HumanMessage("word " * 5000)]
    assert refused(ContextOverflowError, lambda: chat.invoke(long)).code == "context_length_exceeded"
    assert refused(ContextOverflowError, lambda: list(chat.stream(long))).code == "context_length_exceeded"
    nothing = model(ChatOpenAI, model="nothing")
    assert refused(openai.NotFoundError, lambda: nothing.invoke(ASK)).code == "model_not_found"
    assert refused(openai.BadRequestError, lambda: chat.invoke(ASK, temperature=-1)).param == "temperature"


async def check_many(text):
    chat = model(ChatOpenAI)

    async def one():
        return "".join([chunk.content async for chunk in chat.astream(ASK)])

    assert await asyncio.gather(*(one() for _ in range(8))) == [text] * 8


over_socket = httpx2.Client(transport=httpx2.HTTPTransport(uds=SOCKET))
texts = [check_chat(model(ChatOpenAI)), check_chat(model(ChatOpenAI, http_client=over_socket))]
assert texts[0] == texts[1]
check_completion(model(OpenAI))
check_embeddings()
check_errors(model(ChatOpenAI))
asyncio.run(check_many(texts[0]))
print("ok")
