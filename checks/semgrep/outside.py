"""What the rules of outside.yaml have to find, and what they have to leave alone."""

import asyncio
import pickle
import ssl
import subprocess

import msgspec


async def trusting(self, url, body):
    # ruleid: no-redirect-is-followed
    await self._session.post(url, data=body)
    # ruleid: no-redirect-is-followed
    await self._session().get(url)
    # ruleid: no-certificate-unchecked
    await self._session.post(url, ssl=False, allow_redirects=False)
    context = ssl.create_default_context()
    # ruleid: no-certificate-unchecked
    context.check_hostname = False
    # ruleid: no-certificate-unchecked
    context.verify_mode = ssl.CERT_NONE
    # ruleid: no-shell
    subprocess.run(f"curl {url}", shell=True)
    # ruleid: no-shell
    await asyncio.create_subprocess_shell(f"curl {url}")
    # ruleid: no-data-that-becomes-code
    pickle.loads(body)
    # ruleid: no-data-that-becomes-code
    eval(body)


async def careful(self, url, body, connection):
    # ok: no-redirect-is-followed
    await self._session.post(url, data=body, allow_redirects=False)
    # ok: no-redirect-is-followed
    await connection.fetch("SELECT 1")
    # ok: no-certificate-unchecked
    ssl.create_default_context(cafile="ca.crt")
    # ok: no-shell
    subprocess.run(["true", url], check=True)
    # ok: no-data-that-becomes-code
    return msgspec.json.decode(body)
