# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math
import time

from django.contrib import messages
from django.core.paginator import Paginator
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_safe

from guestbook import cluster
from guestbook.forms import EntryForm
from guestbook.models import Entry, Light

SLOWEST = 15.0
ROWS = 20


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "home.html")


@require_safe
def lights(request: HttpRequest) -> HttpResponse:
    page = Paginator(Light.objects.all(), ROWS).get_page(request.GET.get("page"))
    return render(request, "lights.html", {"page": page})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def guestbook(request: HttpRequest) -> HttpResponse:
    """Read and sign the guest book. A token that is already in the book answers 409 and writes nothing."""
    status = 200
    form = EntryForm(request.POST or None)
    if request.method == "POST":
        status = 400
        if form.is_valid():
            entry = form.save(commit=False)
            entry.author = request.user if request.user.is_authenticated else None
            entry.written_on = cluster.node()
            try:
                with transaction.atomic():
                    entry.save()
            except IntegrityError:  # the same token arrived on two nodes at once
                form.add_error("token", "This entry is already in the book.")
                status = 409
            else:
                messages.success(request, "Thank you: your entry is in the book.")
                return redirect("guestbook")
        elif any(error.code == "unique" for error in form.errors.as_data().get("token", [])):
            status = 409
    elif request.user.is_authenticated:
        form = EntryForm(initial={"name": request.user.get_full_name() or request.user.get_username()})
    entries = Entry.objects.select_related("author")[:ROWS]
    return render(request, "guestbook.html", {"form": form, "entries": entries, "status": status}, status=status)


@never_cache
@require_GET
def tokens(request: HttpRequest) -> JsonResponse:
    """The tokens in the book that start with ?prefix=, at most 10,000 of them."""
    rows = Entry.objects.filter(token__startswith=request.GET.get("prefix", "")).order_by("id")
    return JsonResponse({"count": rows.count(), "tokens": list(rows.values_list("token", flat=True)[:10_000])})


@never_cache
@require_safe
def where(request: HttpRequest) -> HttpResponse:
    """Which node answered, with which release, and which database servers it talks to."""
    request.session["counter"] = request.session.get("counter", 0) + 1
    facts = {
        "node": cluster.node(),
        "release": cluster.release(),
        "counter": request.session["counter"],
        "user": request.user.get_username() or None,
        "database_read": cluster.database_server(cluster.read_alias()),
        "database_write": cluster.database_server("default"),
        "secure": request.is_secure(),
        "client": request.META.get("HTTP_X_FORWARDED_FOR", request.META.get("REMOTE_ADDR")),
        "request_id": request.META.get("HTTP_X_REQUEST_ID"),
    }
    if request.GET.get("format") == "json":
        return JsonResponse(facts)
    return render(request, "where.html", {"facts": facts})


@never_cache
@require_safe
def slow(request: HttpRequest) -> HttpResponse:
    """Take ?seconds= (1 if not given, at most 15) before answering."""
    try:
        seconds = float(request.GET.get("seconds", "1"))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        return HttpResponseBadRequest("seconds must be a number from 0 to 15\n", content_type="text/plain")
    seconds = min(seconds, SLOWEST)
    time.sleep(seconds)
    return JsonResponse({"node": cluster.node(), "release": cluster.release(), "seconds": seconds})


@require_safe
def plain(request: HttpRequest) -> HttpResponse:
    """No database, no session, no template: what a request costs at least."""
    return HttpResponse("The light is on.\n", content_type="text/plain; charset=utf-8")
