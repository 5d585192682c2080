"""A small Hub on loopback that the real `huggingface_hub` client talks to: enough of its HTTP API to create repositories,
upload through LFS, commit, list and download. Repositories live in memory.

    with LocalHub() as hub:
        hub.add("owner/name", folder)                 # as if somebody had pushed it
        subprocess.run(…, env=os.environ | hub.environment(cache))

The client reads its endpoint when it is imported, so that whatever shall talk to this Hub runs in a process of its own.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

TOKEN = "hf_local_secret"
OWNER = "owner"
LARGE = 10_000  # bytes from which on a file goes through LFS, as it does when it is binary


@dataclass
class Repo:
    """A repository: commits in order, each a commit hash with all files of that state."""

    private: bool = False
    gated: bool = False
    sdk: str | None = None  # of a Space
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    @property
    def sha(self) -> str:
        return self.commits[-1][0]

    def commit(self, files: dict[str, bytes]) -> str:
        content = json.dumps({path: _sha256(data) for path, data in sorted(files.items())}) + str(len(self.commits))
        self.commits.append((hashlib.sha1(content.encode()).hexdigest(), files))
        return self.sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class LocalHub:
    """Repositories by (type, id), uploaded large files by hash, and what was asked, as (method, path)."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploads_before_cut: int | None = None  # the connection breaks at the upload after so many
        self.failures: list[int] = []  # statuses to answer the next commits with; 200 lets one pass
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, folder: Path, repo_type: str = "model", **flags: bool) -> Repo:
        """A repository that holds the files of `folder`."""
        files = {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
        repo = self.repos[repo_type, repo_id] = Repo(**flags)
        repo.commit(files)
        return repo

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables under which a new process finds this Hub, with its own cache below `home`."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(path: str, size: int) -> bool:
    return size > LARGE or path.endswith(".safetensors")


class _Failure(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/(?P<kind>model|space)s/(?P<repo>[^/]+/[^/]+|[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/api/(?P<kind>model|space)s/(?P<repo>[^/]+(/[^/]+)?)/revision/(?P<revision>[^/]+)", "info"),
        ("POST", r"/api/(?P<kind>model|space)s/(?P<repo>[^/]+/[^/]+)/preupload/[^/]+", "preupload"),
        ("POST", r"/api/(?P<kind>model|space)s/(?P<repo>[^/]+/[^/]+)/commit/[^/]+", "commit"),
        ("GET", r"/api/(?P<kind>model|space)s/(?P<repo>[^/]+/[^/]+|[^/]+)", "info"),
        ("POST", r"/(?P<kind>spaces/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
        ("HEAD", r"/(?P<kind>spaces/)?(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/(?P<kind>spaces/)?(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        self.body = self._read_body()
        try:
            for method, pattern, name in self.ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    return getattr(self, f"answer_{name}")(**found.groupdict())
            raise _Failure(404, f"no such route {path}")
        except _Failure as failure:
            self._send(failure.status, {"error": failure.message}, failure)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_) -> None:
        pass

    # --- accounts and repositories

    def answer_whoami(self) -> None:
        self._require_token()
        auth = {"accessToken": {"role": "write", "displayName": "local"}}
        self._send(200, {"name": OWNER, "type": "user", "orgs": [], "auth": auth})

    def answer_create(self) -> None:
        self._require_token()
        asked = json.loads(self.body)
        owner, kind = asked.get("organization") or OWNER, asked.get("type") or "model"
        if owner != OWNER:
            raise _Failure(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        key = kind, f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'spaces/' if kind == 'space' else ''}{key[1]}"
        if key in self.hub.repos:
            return self._send(409, {"error": "You already created this repo", "url": url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self.hub.repos[key] = Repo(private, sdk=asked.get("sdk"))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, {"url": url, "name": key[1], "id": key[1]})

    def answer_validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def answer_info(self, kind: str, repo: str, revision: str = "main") -> None:
        sha, files = self._state(kind, repo, revision)
        siblings = [{"rfilename": path} for path in files]
        private = self.hub.repos[kind, repo].private
        self._send(200, {"id": repo, "modelId": repo, "sha": sha, "private": private, "siblings": siblings, "tags": []})

    def answer_tree(self, kind: str, repo: str, revision: str) -> None:
        _, files = self._state(kind, repo, revision)
        self._send(200, [self._listed(path, data) for path, data in files.items()])

    @staticmethod
    def _listed(path: str, data: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(data), "oid": _git_sha1(data)}
        large = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
        return entry | ({"lfs": large} if _is_large(path, len(data)) else {})

    # --- uploads

    def answer_preupload(self, kind: str, repo: str) -> None:
        self._require_token()
        _, stored = self._state(kind, repo, "main")
        files = []
        for asked in json.loads(self.body)["files"]:
            data, large = stored.get(asked["path"]), _is_large(asked["path"], asked["size"])
            oid = None if data is None else (_sha256 if large else _git_sha1)(data)
            mode = "lfs" if large else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def answer_batch(self, kind: str | None, repo: str) -> None:
        self._require_token()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            objects.append(asked | ({} if asked["oid"] in self.hub.large_files else {"actions": action}))
        self._send(200, {"transfer": "basic", "objects": objects})

    def answer_upload(self, oid: str) -> None:
        if self.hub.uploads_before_cut is not None:
            if self.hub.uploads_before_cut == 0:
                return self._cut()
            self.hub.uploads_before_cut -= 1
        if _sha256(self.body) != oid:
            raise _Failure(400, "the content does not have this hash")
        self.hub.large_files[oid] = self.body
        self._send(200, {})

    def answer_commit(self, kind: str, repo: str) -> None:
        self._require_token()
        if self.hub.failures:
            status = self.hub.failures.pop(0)
            if status != 200:
                raise _Failure(status, "try again later")
        _, stored = self._state(kind, repo, "main")
        files = dict(stored)
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif row["key"] == "deletedFile":
                files.pop(value["path"])
        sha = self.hub.repos[kind, repo].commit(files)
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    # --- downloads

    def answer_resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        sha, files = self._state("space" if kind else "model", repo, revision)
        if path not in files:
            raise _Failure(404, f"{path} is not in {repo}", "EntryNotFound")
        data = files[path]
        etag = _sha256(data) if _is_large(path, len(data)) else _git_sha1(data)
        self.send_response(200)
        for name, value in {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    # --- what all need

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _require_token(self) -> None:
        if self._token() != TOKEN:
            raise _Failure(401, "Invalid credentials in Authorization header")

    def _state(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        known = self.hub.repos.get((kind, repo))
        if known is None or (known.private and self._token() != TOKEN):
            raise _Failure(404 if self._token() == TOKEN else 401, "Repository not found", "RepoNotFound")
        if known.gated:
            raise _Failure(403, f"Access to {repo} is restricted", "GatedRepo")
        state = known.at(revision)
        if state is None:
            raise _Failure(404, f"no revision {revision}", "RevisionNotFound")
        return state

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(iter(self._read_chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _read_chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, answer: object, failure: _Failure | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if failure:
            self.send_header("X-Error-Message", failure.message)
            if failure.code:
                self.send_header("X-Error-Code", failure.code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
