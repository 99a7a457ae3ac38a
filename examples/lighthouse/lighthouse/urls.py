# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import path
from guestbook import views

urlpatterns = [
    path("", views.home, name="home"),
    path("lights/", views.lights, name="lights"),
    path("guestbook/", views.guestbook, name="guestbook"),
    path("guestbook/tokens/", views.tokens, name="tokens"),
    path("where/", views.where, name="where"),
    path("slow/", views.slow, name="slow"),
    path("plain/", views.plain, name="plain"),
    path("accounts/login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("accounts/logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
